-- How often somebody asked for what there is not: cards, or tokens that nobody was given. Counted
-- per window of time and forgotten after it. Unlogged: nothing is lost with it, and whoever asks
-- does not wait for the disk.
CREATE UNLOGGED TABLE miss (
    asker   text NOT NULL CHECK (length(asker) BETWEEN 1 AND 200),
    ends_at timestamptz NOT NULL,         -- of the window; from then on it does not count
    seconds integer NOT NULL CHECK (seconds > 0),
    misses  bigint NOT NULL CHECK (misses > 0),
    allowed bigint NOT NULL,              -- with this many the window is full
    PRIMARY KEY (asker, ends_at, seconds)
);
CREATE INDEX miss_ended ON miss (ends_at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'kantis_app')
       AND current_user <> 'kantis_app' THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON miss TO kantis_app;
    END IF;
END $$;
