-- The application reads everything, adds, and changes only what is a state and not a history.
-- On a server that others run, the owner may be the application's role too: then there is
-- nothing to grant.
DO $$
BEGIN
    -- A temporary table of the same name would be written to instead of the books.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'kantis_app')
       AND current_user <> 'kantis_app' THEN
        GRANT USAGE ON SCHEMA public TO kantis_app;
        GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO kantis_app;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO kantis_app;
        GRANT UPDATE ON programme, store, account, card, lot, balance, till_token TO kantis_app;
        GRANT UPDATE (decision) ON event TO kantis_app;
        GRANT UPDATE (account_id, event_no) ON receipt_key TO kantis_app;
        GRANT UPDATE (nothing, dismissed_at, dismissed_by, dismissed_why) ON stray TO kantis_app;
        GRANT DELETE ON stray, tier_change, review, snapshot TO kantis_app;
    END IF;
END $$;
