-- The application reads everything, books through `book` alone, and writes directly only what no
-- points depend on. On a server that others run, the owner may be the application's role too: then
-- there is nothing to grant.
DO $$
BEGIN
    -- A temporary table of the same name would be written to instead of the books.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE ALL ON FUNCTION book, look_up, seal_books FROM PUBLIC;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'kantis_app')
       AND current_user <> 'kantis_app' THEN
        GRANT USAGE ON SCHEMA public TO kantis_app;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO kantis_app;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO kantis_app;
        GRANT INSERT ON programme, terms_version, suspension, store, till_token, account, card,
            card_change, card_link, request TO kantis_app;
        GRANT UPDATE ON programme, store, card, till_token TO kantis_app;
        GRANT UPDATE (next_due_on) ON account TO kantis_app;
        GRANT UPDATE (nothing, dismissed_at, dismissed_by, dismissed_why) ON stray TO kantis_app;
        GRANT EXECUTE ON FUNCTION book, look_up, seal_books TO kantis_app;
    END IF;
END $$;
