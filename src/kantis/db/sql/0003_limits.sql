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

-- What tokens stand for, those that are known and not revoked. Whether they have guessed too often is
-- read along: a question of its own would cost as much as the tokens'.
CREATE FUNCTION good_tokens(hashes_in bytea[], at_in timestamptz)
RETURNS TABLE (hash text, programme text, store text, label text, kind text, asker text,
               untold_until timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT encode(token_hash, 'hex'), programme, store, label, kind, asker,
           (SELECT max(ends_at) FROM miss m WHERE ends_at > at_in AND misses >= allowed
            AND m.asker IN (t.asker, concat('store/', programme, '/', store)))
    FROM (SELECT *, concat('token/', left(encode(token_hash, 'hex'), 16)) AS asker
          FROM till_token WHERE token_hash = ANY (hashes_in) AND revoked_at IS NULL) t
$$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'kantis_app')
       AND current_user <> 'kantis_app' THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON miss TO kantis_app;
    END IF;
END $$;
