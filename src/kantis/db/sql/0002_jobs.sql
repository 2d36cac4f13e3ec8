-- The application queues and runs jobs. Its functions run with the rights of who calls them.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'kantis_app')
       AND current_user <> 'kantis_app' THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON procrastinate_jobs, procrastinate_events,
            procrastinate_periodic_defers, procrastinate_workers TO kantis_app;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO kantis_app;
    END IF;
END $$;
