-- Which rows a session sees: those of the programme that it speaks for (`kantis.programme`), all
-- if that is `*`, none if it is not set. This guards against a check that was forgotten further
-- out. It holds for the tables' owner too; whoever may set what they like is not stopped by it.

DO $$
DECLARE
    scope CONSTANT text := '(SELECT current_setting(''kantis.programme'', true))';
    guarded text;
BEGIN
    FOREACH guarded IN ARRAY ARRAY['account', 'card', 'stray', 'request'] LOOP
        EXECUTE format('CREATE POLICY scope ON %I USING (%s IN (''*'', programme))', guarded, scope);
    END LOOP;
    FOREACH guarded IN ARRAY ARRAY['event', 'transfer', 'posting', 'lot', 'balance', 'card_order',
                                   'tier_change', 'review', 'snapshot', 'capture',
                                   'account_seal'] LOOP
        -- Only `book` and `seal_books` write here, as speaking for all: what they write is not
        -- looked at once more, and whoever speaks for one programme writes nothing past them; nobody
        -- may delete (0001_grants.sql).
        EXECUTE format('CREATE POLICY scope ON %1$I USING (%2$s = ''*'' OR EXISTS ('
                       'SELECT FROM account a WHERE a.account_id = %1$I.account_id))'
                       ' WITH CHECK (%2$s = ''*'')',
                       guarded, scope);
    END LOOP;
    FOREACH guarded IN ARRAY ARRAY['card_link', 'card_change'] LOOP
        EXECUTE format('CREATE POLICY scope ON %1$I USING (%2$s = ''*'' OR EXISTS ('
                       'SELECT FROM card c WHERE c.card_number = %1$I.card_number))',
                       guarded, scope);
    END LOOP;
    FOR guarded IN SELECT tablename FROM pg_policies WHERE schemaname = 'public' LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', guarded);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', guarded);
    END LOOP;
END $$;
