\echo Use "CREATE EXTENSION pgstream_hooks" to load this file. \quit

-- Workers write the journal's rows as a heap has them.
SET LOCAL default_table_access_method = heap;

CREATE SCHEMA pgwh;
COMMENT ON SCHEMA pgwh IS 'pgstream_hooks: committed row changes become webhooks. Start with \df+ pgwh.* and SELECT * FROM pgwh.health()';
CREATE SCHEMA pgwh_internal;
COMMENT ON SCHEMA pgwh_internal IS 'tables and functions that pgstream_hooks itself uses; no part of its interface';

-- Refuses when the library is not preloaded, warns of what the workers will wait for.
CREATE FUNCTION pgwh_internal.extension_created() RETURNS void
    LANGUAGE c AS 'MODULE_PATHNAME', 'extension_created_wrapper';
COMMENT ON FUNCTION pgwh_internal.extension_created() IS 'called once by CREATE EXTENSION: says what the server lacks';
SELECT pgwh_internal.extension_created();

CREATE FUNCTION pgwh_internal.extension_updated() RETURNS void
    LANGUAGE c AS 'MODULE_PATHNAME', 'extension_updated_wrapper';
COMMENT ON FUNCTION pgwh_internal.extension_updated() IS 'called by each script of ALTER EXTENSION ... UPDATE: refuses a library that is too old, and has the workers begin anew';

-- ---------------------------------------------------------------------------------------------------------------
-- Who we are

CREATE TABLE pgwh_internal.installation (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    database_oid oid NOT NULL,
    system_identifier bigint NOT NULL,
    schema_version text NOT NULL,
    home text,
    slot_name text,
    evidence text
);
CREATE UNIQUE INDEX installation_is_one_row ON pgwh_internal.installation ((true));
COMMENT ON TABLE pgwh_internal.installation IS 'one row: where and when this extension was created; a copy of the database tells itself from the original by it';
COMMENT ON COLUMN pgwh_internal.installation.id IS 'drawn at CREATE EXTENSION';
COMMENT ON COLUMN pgwh_internal.installation.database_oid IS 'the database''s oid at CREATE EXTENSION';
COMMENT ON COLUMN pgwh_internal.installation.system_identifier IS 'the cluster''s system identifier at CREATE EXTENSION';
COMMENT ON COLUMN pgwh_internal.installation.schema_version IS 'version of the tables and functions in this schema';
COMMENT ON COLUMN pgwh_internal.installation.home IS 'pgwh_internal.home() where it was created or last adopted; a promoted standby knows its primary''s subscriptions by it';
COMMENT ON COLUMN pgwh_internal.installation.evidence IS 'boot id, device of the data directory and digest of the machine when the workers last started; another machine, or another device of the same boot, has a snapshot or a moved volume';
COMMENT ON COLUMN pgwh_internal.installation.slot_name IS 'name that the replication slot was last made under, or is to be; null: the default';

INSERT INTO pgwh_internal.installation (database_oid, system_identifier, schema_version)
SELECT d.oid, c.system_identifier, e.extversion
FROM pg_catalog.pg_database d, pg_catalog.pg_control_system() c, pg_catalog.pg_extension e
WHERE d.datname = pg_catalog.current_database() AND e.extname = 'pgstream_hooks';

CREATE FUNCTION pgwh_internal.installed() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
        SELECT i.id || '/' || d.oid
        FROM pgwh_internal.installation i, pg_catalog.pg_database d
        WHERE d.datname = pg_catalog.current_database();
    END;
COMMENT ON FUNCTION pgwh_internal.installed() IS 'names this installation and database: what a restored dump and a copy made from a template have not in common with their original';

CREATE FUNCTION pgwh_internal.place() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'place_wrapper';
COMMENT ON FUNCTION pgwh_internal.place() IS 'names timeline, machine (or pgwh.server_identity) and data directory: what a cloned, moved or restored cluster has not in common with its original';

CREATE FUNCTION pgwh_internal.home() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
        SELECT pgwh_internal.installed() || '/' || c.system_identifier || '/' || pgwh_internal.place() FROM pg_catalog.pg_control_system() c;
    END;
COMMENT ON FUNCTION pgwh_internal.home() IS 'names this installation, database, cluster and place; a subscription whose home is another one is held';
UPDATE pgwh_internal.installation SET home = pgwh_internal.home();

CREATE FUNCTION pgwh_internal.is_earlier_home(home text) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
        SELECT substr(h.home, strpos(h.home, '/')) = substr(is_earlier_home.home, strpos(is_earlier_home.home, '/'))
            AND h.home <> is_earlier_home.home
        FROM (SELECT pgwh_internal.home() AS home OFFSET 0) h;
    END;
COMMENT ON FUNCTION pgwh_internal.is_earlier_home(text) IS 'whether a home is one of this database and place, of an installation of the extension that was dropped';

CREATE FUNCTION pgwh_internal.copy_detection(OUT ok boolean, OUT detail text, OUT hint text) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'copy_detection_wrapper';
COMMENT ON FUNCTION pgwh_internal.copy_detection() IS 'by what a copy of the data directory is noticed, and what to set where that is weak';

CREATE FUNCTION pgwh.version() RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'version_wrapper';
COMMENT ON FUNCTION pgwh.version() IS 'version of the library that this server has loaded';

CREATE FUNCTION pgwh_internal.sees(owner text) RETURNS boolean
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'sees_wrapper';
COMMENT ON FUNCTION pgwh_internal.sees(text) IS 'whether the caller is shown what belongs to a role: as a member of it, or as one who sees everything (superusers and roles with BYPASSRLS)';

CREATE FUNCTION pgwh_internal.may_act_for(owner text) RETURNS boolean
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'may_act_for_wrapper';
COMMENT ON FUNCTION pgwh_internal.may_act_for(text) IS 'whether the caller is shown the URLs of a role: as a member of it, or as a superuser';

CREATE FUNCTION pgwh_internal.preloaded() RETURNS boolean
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'preloaded_wrapper';
COMMENT ON FUNCTION pgwh_internal.preloaded() IS 'whether shared_preload_libraries loaded the library at server start';

-- ---------------------------------------------------------------------------------------------------------------
-- Subscriptions

CREATE TABLE pgwh.subscriptions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    url text NOT NULL,
    tables text[] NOT NULL,
    event_types text[] NOT NULL,
    filter text,
    changed text[],
    columns text[],
    exclude_columns text[],
    transform text,
    route text,
    format text NOT NULL DEFAULT 'pgwh',
    headers jsonb NOT NULL,
    batch_size integer NOT NULL DEFAULT 1,
    batch_wait interval NOT NULL DEFAULT '0 s',
    ordering text NOT NULL DEFAULT 'key',
    key_columns text[],
    timeout interval NOT NULL,
    max_in_flight integer NOT NULL,
    rate_limit integer,
    retry_schedule interval[] NOT NULL DEFAULT '{5 s,5 min,30 min,2 h,5 h,10 h,14 h,20 h,24 h}',
    retention interval,
    compress text,
    origin text NOT NULL DEFAULT 'any',
    enabled boolean NOT NULL DEFAULT true,
    paused boolean NOT NULL DEFAULT false,
    disabled_reason text,
    owner text NOT NULL DEFAULT current_user,
    home text NOT NULL DEFAULT pgwh_internal.home(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- Its changes are decoded like any other's, and an update leaves unchanged TOAST out of WAL otherwise.
ALTER TABLE pgwh.subscriptions REPLICA IDENTITY FULL;
COMMENT ON TABLE pgwh.subscriptions IS 'who gets which changes; INSERT, UPDATE and DELETE are as good as pgwh.subscribe() and pgwh.unsubscribe(), under the same checks';
COMMENT ON COLUMN pgwh.subscriptions.id IS 'identity of the subscription, never reused; part of webhook-id';
COMMENT ON COLUMN pgwh.subscriptions.name IS 'its name; made from the url''s host, the tables and a digest when left out';
COMMENT ON COLUMN pgwh.subscriptions.url IS 'where to POST';
COMMENT ON COLUMN pgwh.subscriptions.tables IS 'patterns schema.table with * wildcards; bare names are stored with the schema that the search path gave (default {*.*})';
COMMENT ON COLUMN pgwh.subscriptions.event_types IS 'any of insert, update, delete, truncate (or I U D T), ddl, message, message:<prefix>, read, system (default the first four)';
COMMENT ON COLUMN pgwh.subscriptions.filter IS 'a SQL condition over NEW and OLD; a bare column means NEW, in a delete OLD (default none)';
COMMENT ON COLUMN pgwh.subscriptions.changed IS 'updates only when one of these columns changed (default all updates)';
COMMENT ON COLUMN pgwh.subscriptions.columns IS 'columns that payloads hold, besides the key (default all)';
COMMENT ON COLUMN pgwh.subscriptions.exclude_columns IS 'columns that payloads leave out; the key stays (default none)';
COMMENT ON COLUMN pgwh.subscriptions.transform IS 'function f(event jsonb) returns jsonb that makes the body and runs as the owner; stored with its schema; NULL sends nothing (default none)';
COMMENT ON COLUMN pgwh.subscriptions.route IS 'function f(event jsonb) returns jsonb with any of method, path and headers of the event''s request, which runs as the owner (default none)';
COMMENT ON COLUMN pgwh.subscriptions.format IS 'shape of payloads: pgwh, pgstream, sequin, supabase or cloudevents (default pgwh)';
COMMENT ON COLUMN pgwh.subscriptions.headers IS 'extra request headers: an object of strings (default {}); values of sensitive ones, such as authorization, are shown as hidden:...';
COMMENT ON COLUMN pgwh.subscriptions.batch_size IS 'most events in a request; more than 1 makes every body an array (default 1)';
COMMENT ON COLUMN pgwh.subscriptions.batch_wait IS 'how long an event waits for others to share its request (default 0)';
COMMENT ON COLUMN pgwh.subscriptions.ordering IS 'key: changes of a row in commit order; strict: all changes, one request at a time; none: no order (default key)';
COMMENT ON COLUMN pgwh.subscriptions.key_columns IS 'columns by which changes are kept in order when ordering is key (default the primary key)';
COMMENT ON COLUMN pgwh.subscriptions.timeout IS 'limit of a whole request, connect to last byte (default 15 s)';
COMMENT ON COLUMN pgwh.subscriptions.max_in_flight IS 'requests at once (default 16)';
COMMENT ON COLUMN pgwh.subscriptions.rate_limit IS 'requests a second at most (default null: no limit)';
COMMENT ON COLUMN pgwh.subscriptions.retry_schedule IS 'delays between attempts; behind the last one an event is dead, an empty array means one attempt';
COMMENT ON COLUMN pgwh.subscriptions.retention IS 'how long events stay for replay; null: as the setting pgwh.retention says';
COMMENT ON COLUMN pgwh.subscriptions.compress IS 'gzip, or null for bodies as they are (default null)';
COMMENT ON COLUMN pgwh.subscriptions.origin IS 'any: all changes; local: only transactions that were committed here first, without a replication origin (default any)';
COMMENT ON COLUMN pgwh.subscriptions.enabled IS 'whether changes are captured for it';
COMMENT ON COLUMN pgwh.subscriptions.paused IS 'whether changes are kept for later instead of being sent';
COMMENT ON COLUMN pgwh.subscriptions.disabled_reason IS 'why it was disabled, when that happened by itself; enabling it clears this';
COMMENT ON COLUMN pgwh.subscriptions.owner IS 'name of the role that it belongs to';
COMMENT ON COLUMN pgwh.subscriptions.home IS 'where it was made or last armed, see pgwh_internal.home(); SET home = DEFAULT arms it here, pgwh.adopt() all that are held';
COMMENT ON COLUMN pgwh.subscriptions.created_at IS 'when it was made';
COMMENT ON COLUMN pgwh.subscriptions.updated_at IS 'when it was last changed';

CREATE FUNCTION pgwh_internal.table_keys(tables text[]) RETURNS bigint[]
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'table_keys_wrapper';
COMMENT ON FUNCTION pgwh_internal.table_keys(text[]) IS 'keys of patterns of tables, by which commands on a table find the subscriptions that need it';
CREATE INDEX subscriptions_by_table ON pgwh.subscriptions USING gin (pgwh_internal.table_keys(tables)) WITH (fastupdate = off)
    WHERE filter IS NOT NULL OR changed IS NOT NULL OR key_columns IS NOT NULL OR columns IS NOT NULL OR exclude_columns IS NOT NULL;

CREATE FUNCTION pgwh.generate_secret(signature text DEFAULT 'v1') RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'generate_secret_wrapper';
COMMENT ON FUNCTION pgwh.generate_secret(text) IS 'a new random signing key: whsec_... for v1, whsk_... for v1a';

CREATE TABLE pgwh.secrets (
    subscription_id bigint PRIMARY KEY REFERENCES pgwh.subscriptions ON DELETE CASCADE,
    secret text DEFAULT pgwh.generate_secret(),
    previous_secret text,
    previous_until timestamptz,
    headers text,
    client_certificate text
);
COMMENT ON TABLE pgwh.secrets IS 'what subscriptions keep to themselves, apart from pgwh.subscriptions so that reading that shows none; sealed when pgwh.encryption_key_file names a key';
COMMENT ON COLUMN pgwh.secrets.subscription_id IS 'the subscription';
COMMENT ON COLUMN pgwh.secrets.secret IS 'its signing key: whsec_ and 24 to 64 bytes in base64, or whsk_ and an Ed25519 private key';
COMMENT ON COLUMN pgwh.secrets.previous_secret IS 'the key before, which signs too until previous_until';
COMMENT ON COLUMN pgwh.secrets.previous_until IS 'when the key before stops signing';
COMMENT ON COLUMN pgwh.secrets.headers IS 'values of sensitive headers by what pgwh.subscriptions.headers has in their place, as JSON';
COMMENT ON COLUMN pgwh.secrets.client_certificate IS 'certificate and private key for mutual TLS, in PEM';

CREATE TABLE pgwh_internal.routing_image (
    subscription_id bigint,
    lsn pg_lsn,
    spec text NOT NULL,
    PRIMARY KEY (subscription_id, lsn)
);
COMMENT ON TABLE pgwh_internal.routing_image IS 'subscriptions as write-ahead log has told of them so far; written by the dispatcher only, a restarted decoder begins from it';
COMMENT ON COLUMN pgwh_internal.routing_image.subscription_id IS 'the subscription, also when it is gone by now';
COMMENT ON COLUMN pgwh_internal.routing_image.lsn IS 'commit that made it so';
COMMENT ON COLUMN pgwh_internal.routing_image.spec IS 'the subscription as of that commit, as JSON';

CREATE TABLE pgwh.gaps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id bigint NOT NULL,
    from_lsn pg_lsn NOT NULL,
    to_lsn pg_lsn,
    relation oid,
    table_name text,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    until timestamptz,
    lost boolean NOT NULL DEFAULT false,
    reason text NOT NULL,
    told boolean NOT NULL DEFAULT false,
    acknowledged_at timestamptz,
    acknowledged_by text,
    UNIQUE NULLS NOT DISTINCT (subscription_id, from_lsn, relation)
);
CREATE INDEX gaps_untold ON pgwh.gaps (subscription_id) WHERE NOT told;
COMMENT ON TABLE pgwh.gaps IS 'changes that subscriptions will never get: committed while they were disabled, or while a table was not captured for them, or lost with the write-ahead log; written by the dispatcher, and by pgwh.acknowledge_gap()';
COMMENT ON COLUMN pgwh.gaps.id IS 'identity of the gap';
COMMENT ON COLUMN pgwh.gaps.subscription_id IS 'the subscription, also when it is gone by now';
COMMENT ON COLUMN pgwh.gaps.from_lsn IS 'changes committed from this position on are missing';
COMMENT ON COLUMN pgwh.gaps.to_lsn IS 'up to this one, where changes are captured again; null while the gap is open';
COMMENT ON COLUMN pgwh.gaps.relation IS 'oid of the table whose changes are missing; null: changes of all tables';
COMMENT ON COLUMN pgwh.gaps.table_name IS 'name of that table when the gap began, as a pattern for pgwh.backfill; of a partition, the table above it that the subscription is about';
COMMENT ON COLUMN pgwh.gaps.since IS 'when it was noted';
COMMENT ON COLUMN pgwh.gaps.until IS 'when it ended: the commit that ended it, or when that was noted';
COMMENT ON COLUMN pgwh.gaps.lost IS 'true: lost with the write-ahead log';
COMMENT ON COLUMN pgwh.gaps.reason IS 'how it came about';
COMMENT ON COLUMN pgwh.gaps.told IS 'whether subscriptions to system events have been told; also true of what a disabled subscription will miss when it is enabled';
COMMENT ON COLUMN pgwh.gaps.acknowledged_at IS 'when pgwh.acknowledge_gap() closed it; null when it did not';
COMMENT ON COLUMN pgwh.gaps.acknowledged_by IS 'the role that closed it by pgwh.acknowledge_gap()';

CREATE TABLE pgwh_internal.error_states (
    subscription_id bigint PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text
);
COMMENT ON TABLE pgwh_internal.error_states IS 'subscriptions that were in the state error when they were last looked at; written by the dispatcher only, which tells of changes';
COMMENT ON COLUMN pgwh_internal.error_states.subscription_id IS 'the subscription';
COMMENT ON COLUMN pgwh_internal.error_states.since IS 'when that was noted';
COMMENT ON COLUMN pgwh_internal.error_states.reason IS 'why, when that was noted';

CREATE FUNCTION pgwh_internal.await_capture() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'await_capture_wrapper';
COMMENT ON FUNCTION pgwh_internal.await_capture() IS 'waits until changes are captured, so that none is missed after an INSERT';
CREATE TRIGGER await_capture BEFORE INSERT ON pgwh.subscriptions
    FOR EACH STATEMENT EXECUTE FUNCTION pgwh_internal.await_capture();

CREATE FUNCTION pgwh_internal.check_subscription() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'check_subscription_wrapper';
COMMENT ON FUNCTION pgwh_internal.check_subscription() IS 'checks a subscription and stores it in one spelling; only its owner changes or deletes it';
CREATE TRIGGER check_subscription BEFORE INSERT OR UPDATE OR DELETE ON pgwh.subscriptions
    FOR EACH ROW EXECUTE FUNCTION pgwh_internal.check_subscription();

CREATE FUNCTION pgwh_internal.provide_secret() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'provide_secret_wrapper';
COMMENT ON FUNCTION pgwh_internal.provide_secret() IS 'gives a new subscription a signing key';
-- A restored row keeps the key that the dump has for it, or has none.
CREATE TRIGGER provide_secret AFTER INSERT ON pgwh.subscriptions
    FOR EACH ROW WHEN (starts_with(NEW.home, pgwh_internal.installed() || '/')) EXECUTE FUNCTION pgwh_internal.provide_secret();

CREATE FUNCTION pgwh_internal.store_headers() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'store_headers_wrapper';
COMMENT ON FUNCTION pgwh_internal.store_headers() IS 'keeps values of sensitive headers in pgwh.secrets';
CREATE TRIGGER store_headers AFTER INSERT OR UPDATE OF headers ON pgwh.subscriptions
    FOR EACH ROW WHEN (starts_with(NEW.home, pgwh_internal.installed() || '/')) EXECUTE FUNCTION pgwh_internal.store_headers();

CREATE FUNCTION pgwh_internal.warn_of_tables() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'warn_of_tables_wrapper';
COMMENT ON FUNCTION pgwh_internal.warn_of_tables() IS 'warns of patterns of tables that no table matches';
CREATE TRIGGER warn_of_tables AFTER INSERT OR UPDATE OF tables ON pgwh.subscriptions
    FOR EACH ROW WHEN (starts_with(NEW.home, pgwh_internal.installed() || '/')) EXECUTE FUNCTION pgwh_internal.warn_of_tables();

CREATE FUNCTION pgwh_internal.report_dropped_events() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    found record;
BEGIN
    SELECT count(*) FILTER (WHERE p.pending > 0) AS subscriptions, sum(p.pending)::bigint AS pending,
        min(d.name) FILTER (WHERE p.pending > 0) AS name, count(*) FILTER (WHERE p.pending IS NULL) AS unknown INTO found
    FROM deleted d CROSS JOIN LATERAL (SELECT (pgwh_internal.delivery_stats(d.id)).pending OFFSET 0) p;
    IF found.pending > 0 THEN
        RAISE NOTICE '% of % dropped',
            CASE found.pending WHEN 1 THEN '1 undelivered event' ELSE format('%s undelivered events', found.pending) END,
            CASE found.subscriptions WHEN 1 THEN format('subscription "%s"', found.name) ELSE format('%s subscriptions', found.subscriptions) END
                || CASE found.pending WHEN 1 THEN ' is' ELSE ' are' END;
    END IF;
    IF found.unknown > 0 AND NOT EXISTS (SELECT FROM pgwh_internal.worker_processes() w WHERE w.type = 'pgstream_hooks dispatcher' AND w.pid IS NOT NULL) THEN
        RAISE NOTICE 'undelivered events of deleted subscriptions are dropped'
            USING DETAIL = 'Their number is not known, because the workers of this database are not running.';
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'undelivered events of deleted subscriptions cannot be counted' USING DETAIL = SQLERRM;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pgwh_internal.report_dropped_events() IS 'reports how many undelivered events are dropped with deleted subscriptions';
CREATE TRIGGER report_dropped_events AFTER DELETE ON pgwh.subscriptions REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION pgwh_internal.report_dropped_events();

CREATE FUNCTION pgwh_internal.check_secret() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'check_secret_wrapper';
COMMENT ON FUNCTION pgwh_internal.check_secret() IS 'refuses what is no signing key, and seals';
CREATE TRIGGER check_secret BEFORE INSERT OR UPDATE ON pgwh.secrets
    FOR EACH ROW EXECUTE FUNCTION pgwh_internal.check_secret();

CREATE FUNCTION pgwh_internal.tell_of_secret() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'tell_of_secret_wrapper';
COMMENT ON FUNCTION pgwh_internal.tell_of_secret() IS 'has requests made by what was changed from now on';
CREATE TRIGGER tell_of_secret AFTER UPDATE ON pgwh.secrets
    FOR EACH ROW EXECUTE FUNCTION pgwh_internal.tell_of_secret();

SELECT pg_catalog.pg_extension_config_dump('pgwh.subscriptions', '');
-- In the clear they are in no dump.
SELECT pg_catalog.pg_extension_config_dump('pgwh.secrets', $$
    WHERE secret LIKE 'sealed:%' AND (previous_secret IS NULL OR previous_secret LIKE 'sealed:%')
      AND (headers IS NULL OR headers LIKE 'sealed:%')
      AND (client_certificate IS NULL OR client_certificate LIKE 'sealed:%')$$);

-- A function's name with or without the types of its arguments: regprocedure takes the one only, regproc the other.
CREATE TYPE pgwh.function_name;
CREATE FUNCTION pgwh_internal.function_name_in(cstring) RETURNS pgwh.function_name
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'textin';
COMMENT ON FUNCTION pgwh_internal.function_name_in(cstring) IS 'input of the type pgwh.function_name';
CREATE FUNCTION pgwh_internal.function_name_out(pgwh.function_name) RETURNS cstring
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'textout';
COMMENT ON FUNCTION pgwh_internal.function_name_out(pgwh.function_name) IS 'output of the type pgwh.function_name';
CREATE TYPE pgwh.function_name (INPUT = pgwh_internal.function_name_in, OUTPUT = pgwh_internal.function_name_out, LIKE = text);
COMMENT ON TYPE pgwh.function_name IS 'name of a function, as in public.shape or public.shape(jsonb); texts, regproc and regprocedure become one of themselves';
CREATE CAST (text AS pgwh.function_name) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (varchar AS pgwh.function_name) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (regproc AS pgwh.function_name) WITH INOUT AS IMPLICIT;
CREATE CAST (regprocedure AS pgwh.function_name) WITH INOUT AS IMPLICIT;

CREATE FUNCTION pgwh.subscribe(
    url text,
    name text DEFAULT NULL,
    tables text[] DEFAULT NULL,
    schema text DEFAULT NULL,
    table_name text DEFAULT NULL,
    event_types text[] DEFAULT '{insert,update,delete,truncate}',
    filter text DEFAULT NULL,
    changed text[] DEFAULT NULL,
    columns text[] DEFAULT NULL,
    exclude_columns text[] DEFAULT NULL,
    transform pgwh.function_name DEFAULT NULL,
    route pgwh.function_name DEFAULT NULL,
    format text DEFAULT 'pgwh',
    headers jsonb DEFAULT '{}',
    secret text DEFAULT NULL,
    signature text DEFAULT NULL,
    client_certificate text DEFAULT NULL,
    batch_size integer DEFAULT 1,
    batch_wait interval DEFAULT '0 s',
    ordering text DEFAULT 'key',
    key_columns text[] DEFAULT NULL,
    timeout interval DEFAULT '15 s',
    max_in_flight integer DEFAULT 16,
    rate_limit integer DEFAULT NULL,
    retry_schedule interval[] DEFAULT '{5 s,5 min,30 min,2 h,5 h,10 h,14 h,20 h,24 h}',
    retention interval DEFAULT NULL,
    compress text DEFAULT NULL,
    enabled boolean DEFAULT true,
    backfill boolean DEFAULT false,
    origin text DEFAULT 'any'
) RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'subscribe_wrapper';
COMMENT ON FUNCTION pgwh.subscribe IS
'Sends every change committed from now on to an endpoint; returns the subscription''s id.
  url            where to POST
  name           identity: subscribing again under a name changes that subscription, without one the same url, tables and filter do
  tables         patterns schema.table with * wildcards, default {*.*}; a partitioned table stands for its partitions
  schema, table_name   one schema or table, instead of tables
  event_types    any of insert, update, delete, truncate (or I U D T), which are the default; ddl: schema changes;
                 message: what pgwh.emit() writes; message:<prefix>: other applications'' pg_logical_emit_message();
                 system: what becomes of the subscriptions that the owner may see, such as dead letters and gaps
  filter         a SQL condition over NEW and OLD; a bare column means NEW, in a delete OLD
  changed        updates only when one of these columns changed
  columns, exclude_columns   what payloads hold or leave out, one of the two; the key is always there
  transform      function f(event jsonb) returns jsonb, by its name: its result is the body, NULL sends nothing
  route          function f(event jsonb) returns jsonb with any of method, path and headers of the event''s request
  format         shape of payloads: pgwh, pgstream, sequin, supabase or cloudevents
  headers        extra request headers, an object of strings
  secret         signing key whsec_... or whsk_..., generated when left out: SELECT pgwh.secret(name)
  signature      v1 (HMAC-SHA256, the default) or v1a (Ed25519): SELECT pgwh.public_key(name)
  client_certificate   certificate and private key for mutual TLS, in PEM; an empty text for none
  batch_size     most events in a request; more than 1 makes every body an array
  batch_wait     how long an event waits for others to share its request
  ordering       key (changes of a row in order), strict (all changes, one request at a time) or none
  key_columns    columns by which changes are kept in order, by default the primary key
  timeout        limit of a whole request
  max_in_flight  requests at once
  rate_limit     requests a second at most
  retry_schedule delays between attempts, after the last of which an event is dead; {} means one attempt
  retention      how long events stay for replay, by default as the setting pgwh.retention says
  compress       gzip
  origin         any, or local: only transactions that were committed here first, and not those that replication brings
  enabled        whether changes are captured for it
  backfill       whether the rows that there are already are sent, too, see pgwh.backfill()
Example: SELECT pgwh.subscribe(''https://example.com/hook'', tables => ''{public.orders}'');';

CREATE FUNCTION pgwh.unsubscribe(name text) RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'unsubscribe_wrapper';
COMMENT ON FUNCTION pgwh.unsubscribe(text) IS 'ends a subscription; returns how many undelivered events are dropped with it';

CREATE FUNCTION pgwh.secret(name text) RETURNS text
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'secret_wrapper';
COMMENT ON FUNCTION pgwh.secret(text) IS 'the key that signs a subscription''s requests; for its owner';

CREATE FUNCTION pgwh.public_key(name text) RETURNS text
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'public_key_wrapper';
COMMENT ON FUNCTION pgwh.public_key(text) IS 'what receivers verify by when requests are signed by v1a: whpk_...; null for v1';

CREATE FUNCTION pgwh.rotate_secret(name text, overlap interval DEFAULT '24 hours') RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'rotate_secret_wrapper';
COMMENT ON FUNCTION pgwh.rotate_secret(text, interval) IS 'gives a subscription a new signing key, of the same kind, and returns it; for the time of overlap the old one signs, too';

CREATE FUNCTION pgwh.seal_secrets() RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'seal_secrets_wrapper';
COMMENT ON FUNCTION pgwh.seal_secrets() IS 'encrypts all secrets by the first key of pgwh.encryption_key_file; returns how many subscriptions have some';

CREATE FUNCTION pgwh_internal.secret_problems(OUT subscription_id bigint, OUT problem text) RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'secret_problems_wrapper';
COMMENT ON FUNCTION pgwh_internal.secret_problems() IS 'subscriptions whose requests cannot be signed or made, and why';

CREATE FUNCTION pgwh_internal.certificate_ends(OUT subscription_id bigint, OUT until text) RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'certificate_ends_wrapper';
COMMENT ON FUNCTION pgwh_internal.certificate_ends() IS 'when the client certificates of subscriptions end and, without a subscription, those in pgwh.ca_file';

CREATE FUNCTION pgwh_internal.secret_problem(
    subscription_id bigint, headers jsonb, secret text, hidden text, client_certificate text
) RETURNS text
    LANGUAGE c STABLE COST 5 AS 'MODULE_PATHNAME', 'secret_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.secret_problem(bigint, jsonb, text, text, text) IS 'why a subscription''s requests cannot be signed or made, given its headers and what pgwh.secrets has; null when they can';

CREATE FUNCTION pgwh.adopt(pending text DEFAULT 'send') RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'adopt_wrapper';
COMMENT ON FUNCTION pgwh.adopt(text) IS
'Arms all subscriptions that are held because this is a copy; returns how many.
  pending  send: also what was undelivered when the copy was made, and what was committed since; discard: forget all that
Example: SELECT pgwh.adopt(pending => ''discard'');';

CREATE FUNCTION pgwh.url_encode(value text) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'url_encode_wrapper';
COMMENT ON FUNCTION pgwh.url_encode(text) IS
'The value as one segment of a URL''s path, for routes: percent-encoded UTF-8 (RFC 3986), all but letters, digits and - . _ ~.
Null for null. An empty value makes an empty segment, which leads to another resource; nullif(..., '''') makes the path null, and
the route is refused.
Example: SELECT ''/customers/'' || nullif(pgwh.url_encode(''A/B?x''), '''');';

CREATE FUNCTION pgwh.preview(
    name text, record jsonb, action text DEFAULT 'insert', table_name text DEFAULT NULL, changes jsonb DEFAULT NULL,
    OUT method text, OUT url text, OUT headers jsonb, OUT body json
) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'preview_wrapper';
COMMENT ON FUNCTION pgwh.preview(text, jsonb, text, text, jsonb) IS
'The request that a change of such a row would make, transform and route included; sends nothing. No row: nothing would be sent.
  name        the subscription
  record      the row: values by column; of a delete the old one
  action      insert, update, delete or truncate
  table_name  the row''s table, by default the subscription''s first that has such columns
  changes     of an update, the old values of columns that change
Example: SELECT * FROM pgwh.preview(''orders-to-billing'', ''{"id": 7, "status": "paid"}'');';

CREATE FUNCTION pgwh.test(
    name text, OUT status integer, OUT latency interval, OUT latency_ms double precision, OUT error_class text, OUT error text
) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'test_wrapper';
COMMENT ON FUNCTION pgwh.test(text) IS
'Sends a ping to a subscription''s endpoint, signed and guarded as its events are, and returns what came of it.
Nothing is kept of it and no attempt is counted; it is sent although the subscription is paused or disabled.
Example: SELECT * FROM pgwh.test(''orders-to-billing'');';

-- ---------------------------------------------------------------------------------------------------------------
-- Journal

CREATE TABLE pgwh_internal.slices (
    slice smallint PRIMARY KEY,
    generation bigint,
    opened_at timestamptz,
    done_at timestamptz,
    first_id bigint,
    before_lsn pg_lsn,
    before_ordinal bigint,
    before_at timestamptz
);
COMMENT ON TABLE pgwh_internal.slices IS 'what each slice of the journal holds; a slice is a partition of each of its tables, and is truncated as a whole';
COMMENT ON COLUMN pgwh_internal.slices.slice IS 'its place in the ring';
COMMENT ON COLUMN pgwh_internal.slices.generation IS 'rises from slice to slice; the highest is the one that is written, null means that it is empty';
COMMENT ON COLUMN pgwh_internal.slices.opened_at IS 'since when it was written';
COMMENT ON COLUMN pgwh_internal.slices.done_at IS 'since when all its deliveries are done: retention counts from here';
COMMENT ON COLUMN pgwh_internal.slices.first_id IS 'number of the first delivery that it may hold';
COMMENT ON COLUMN pgwh_internal.slices.before_lsn IS 'commit of the last event before it';
COMMENT ON COLUMN pgwh_internal.slices.before_ordinal IS 'place of that event in its transaction';
COMMENT ON COLUMN pgwh_internal.slices.before_at IS 'when the last event before it was committed';
INSERT INTO pgwh_internal.slices (slice, generation, opened_at, first_id)
SELECT n, CASE n WHEN 0 THEN 1 END, CASE n WHEN 0 THEN now() END, CASE n WHEN 0 THEN 1 END
FROM pg_catalog.generate_series(0, 7) n;

CREATE TABLE pgwh_internal.event_chunks (
    slice smallint NOT NULL,
    first_id bigint NOT NULL,
    last_id bigint NOT NULL,
    first_lsn pg_lsn NOT NULL,
    first_ordinal bigint NOT NULL,
    last_lsn pg_lsn NOT NULL,
    last_ordinal bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    events integer NOT NULL,
    subscriptions bigint[],
    body bytea NOT NULL,
    PRIMARY KEY (last_id, slice)
) PARTITION BY LIST (slice);
CREATE INDEX event_chunks_by_lsn ON pgwh_internal.event_chunks (last_lsn, last_ordinal);
CREATE INDEX event_chunks_by_time ON pgwh_internal.event_chunks (last_at);
COMMENT ON TABLE pgwh_internal.event_chunks IS 'events with those who get them, some dozens packed into a row; pgwh.events shows them one by one';
COMMENT ON COLUMN pgwh_internal.event_chunks.slice IS 'its slice of the journal';
COMMENT ON COLUMN pgwh_internal.event_chunks.first_id IS 'number of its first delivery: each event has one for each subscription that gets it';
COMMENT ON COLUMN pgwh_internal.event_chunks.last_id IS 'number of its last delivery';
COMMENT ON COLUMN pgwh_internal.event_chunks.first_lsn IS 'commit of its first event';
COMMENT ON COLUMN pgwh_internal.event_chunks.first_ordinal IS 'place of its first event in that transaction';
COMMENT ON COLUMN pgwh_internal.event_chunks.last_lsn IS 'commit of its last event';
COMMENT ON COLUMN pgwh_internal.event_chunks.last_ordinal IS 'place of its last event in that transaction';
COMMENT ON COLUMN pgwh_internal.event_chunks.first_at IS 'when its first event was committed';
COMMENT ON COLUMN pgwh_internal.event_chunks.last_at IS 'when its last event was committed';
COMMENT ON COLUMN pgwh_internal.event_chunks.events IS 'how many events it holds';
COMMENT ON COLUMN pgwh_internal.event_chunks.subscriptions IS 'who gets any of them; null when they are more than 64';
COMMENT ON COLUMN pgwh_internal.event_chunks.body IS 'the events, see pgwh_internal.unpack_events()';

CREATE TABLE pgwh_internal.outcome_chunks (
    slice smallint NOT NULL,
    seq bigint NOT NULL,
    lowest_id bigint NOT NULL,
    highest_id bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    outcomes integer NOT NULL,
    dead integer NOT NULL,
    replayed integer NOT NULL,
    subscriptions bigint[],
    body bytea NOT NULL,
    PRIMARY KEY (seq, slice)
) PARTITION BY LIST (slice);
CREATE INDEX outcome_chunks_by_id ON pgwh_internal.outcome_chunks USING gist (int8range(lowest_id, highest_id, '[]'));
CREATE INDEX outcome_chunks_with_dead ON pgwh_internal.outcome_chunks (seq) WHERE dead > 0;
CREATE INDEX outcome_chunks_with_replayed ON pgwh_internal.outcome_chunks (seq) WHERE replayed > 0;
COMMENT ON TABLE pgwh_internal.outcome_chunks IS 'what became of deliveries, some hundreds packed into a row; pgwh.deliveries shows them one by one';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.slice IS 'its slice of the journal';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.seq IS 'number of the row, rising over outcomes, attempts and positions';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.lowest_id IS 'lowest number of a delivery in it';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.highest_id IS 'highest number of a delivery in it';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.first_at IS 'when the first of them was decided';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.last_at IS 'when the last of them was decided';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.outcomes IS 'how many requests it holds';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.dead IS 'how many of them were given up';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.replayed IS 'how many of them belong to replays';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.subscriptions IS 'whose they are; null when these are more than 64';
COMMENT ON COLUMN pgwh_internal.outcome_chunks.body IS 'the outcomes, see pgwh_internal.unpack_outcomes()';

CREATE TABLE pgwh_internal.attempt_rows (
    slice smallint NOT NULL,
    seq bigint NOT NULL,
    delivery_id bigint NOT NULL,
    subscription_id bigint NOT NULL,
    attempt integer NOT NULL,
    started_at timestamptz NOT NULL,
    duration_ms double precision NOT NULL,
    status_code integer,
    error_class text,
    error text,
    response text,
    next_attempt_at timestamptz,
    replay bigint,
    members bytea,
    PRIMARY KEY (seq, slice)
) PARTITION BY LIST (slice);
CREATE INDEX attempt_rows_by_delivery ON pgwh_internal.attempt_rows (delivery_id);
COMMENT ON TABLE pgwh_internal.attempt_rows IS 'requests that failed, or succeeded with a flawed response; pgwh.attempts shows them with the successes that followed';
COMMENT ON COLUMN pgwh_internal.attempt_rows.slice IS 'its slice of the journal';
COMMENT ON COLUMN pgwh_internal.attempt_rows.seq IS 'number of the row, rising over outcomes, attempts and positions';
COMMENT ON COLUMN pgwh_internal.attempt_rows.delivery_id IS 'the delivery; of a batch, its first member''s';
COMMENT ON COLUMN pgwh_internal.attempt_rows.subscription_id IS 'whose it is';
COMMENT ON COLUMN pgwh_internal.attempt_rows.attempt IS 'which request, counted from 1';
COMMENT ON COLUMN pgwh_internal.attempt_rows.started_at IS 'when it was sent';
COMMENT ON COLUMN pgwh_internal.attempt_rows.duration_ms IS 'how long it took, in milliseconds';
COMMENT ON COLUMN pgwh_internal.attempt_rows.status_code IS 'HTTP status of the response; null when there was none';
COMMENT ON COLUMN pgwh_internal.attempt_rows.error_class IS 'kind of error: dns, connect, tls, timeout, reset, blocked, http_4xx, ...; null when it succeeded';
COMMENT ON COLUMN pgwh_internal.attempt_rows.error IS 'what went wrong';
COMMENT ON COLUMN pgwh_internal.attempt_rows.response IS 'beginning of the response';
COMMENT ON COLUMN pgwh_internal.attempt_rows.next_attempt_at IS 'when the next one was due; null when it was the last';
COMMENT ON COLUMN pgwh_internal.attempt_rows.replay IS 'the replay that it belongs to';
COMMENT ON COLUMN pgwh_internal.attempt_rows.members IS 'the other members of a batch';

CREATE TABLE pgwh_internal.positions (
    slice smallint NOT NULL,
    seq bigint NOT NULL,
    written_at timestamptz NOT NULL,
    last_id bigint NOT NULL,
    all_from bigint NOT NULL,
    positions integer NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (seq, slice)
) PARTITION BY LIST (slice);
COMMENT ON TABLE pgwh_internal.positions IS 'where subscriptions stood at checkpoints, some hundreds packed into a row; a new start begins from the last ones, and from what was journaled after them';
COMMENT ON COLUMN pgwh_internal.positions.slice IS 'its slice of the journal';
COMMENT ON COLUMN pgwh_internal.positions.seq IS 'number of the row, rising over outcomes, attempts and positions';
COMMENT ON COLUMN pgwh_internal.positions.written_at IS 'when they stood there';
COMMENT ON COLUMN pgwh_internal.positions.last_id IS 'the last number that any delivery had';
COMMENT ON COLUMN pgwh_internal.positions.all_from IS 'the rows from this number on have the positions of all subscriptions, later ones instead of earlier ones';
COMMENT ON COLUMN pgwh_internal.positions.positions IS 'how many it holds';
COMMENT ON COLUMN pgwh_internal.positions.body IS 'the positions, packed';

-- Bodies are compressed already, and rows stay on one page as long as they fit. Nothing is updated or deleted but by
-- pgwh.forget(), so there is nothing to vacuum. Slices are made like their parents and attached, since only so comments are copied.
ALTER TABLE pgwh_internal.event_chunks ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE pgwh_internal.outcome_chunks ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE pgwh_internal.positions ALTER COLUMN body SET STORAGE EXTERNAL;
DO $$
DECLARE
    parent text;
    content text;
    n integer;
BEGIN
    FOR parent, content IN VALUES ('event_chunks', 'events'), ('outcome_chunks', 'outcomes'), ('attempt_rows', 'attempts'), ('positions', 'positions')
    LOOP
        FOR n IN 0..7 LOOP
            EXECUTE format('CREATE TABLE pgwh_internal.%1$I_%2$s (LIKE pgwh_internal.%1$I INCLUDING ALL) '
                'WITH (toast_tuple_target = 8160, autovacuum_enabled = off)', parent, n);
            EXECUTE format('ALTER TABLE pgwh_internal.%1$I ATTACH PARTITION pgwh_internal.%1$I_%2$s FOR VALUES IN (%2$s)', parent, n);
            EXECUTE format('COMMENT ON TABLE pgwh_internal.%I_%s IS %L', parent, n, format('slice %s of %s', n, content));
        END LOOP;
    END LOOP;
END $$;

CREATE FUNCTION pgwh_internal.unpack_events(
    first_id bigint, body bytea, OUT id text, OUT commit_lsn bigint, OUT xid bigint, OUT ordinal bigint,
    OUT committed_at timestamptz, OUT schema_name bytea, OUT table_name bytea, OUT action text, OUT payload bytea,
    OUT delivery_ids bigint[], OUT subscription_ids bigint[], OUT error text, OUT relation oid
) RETURNS SETOF record
    LANGUAGE c STABLE STRICT ROWS 100 AS 'MODULE_PATHNAME', 'unpack_events_wrapper';
COMMENT ON FUNCTION pgwh_internal.unpack_events(bigint, bytea) IS 'the events of a row of pgwh_internal.event_chunks; names and payload are in UTF-8, the payload with replacements for what jsonb refuses';

CREATE FUNCTION pgwh_internal.unpack_outcomes(
    body bytea, OUT id bigint, OUT members bigint[], OUT subscription_id bigint, OUT dead boolean, OUT event_id text,
    OUT attempts integer, OUT status_code integer, OUT error_class text, OUT error text,
    OUT duration_ms double precision, OUT committed_at timestamptz, OUT finished_at timestamptz, OUT replay bigint,
    OUT events text[]
) RETURNS SETOF record
    LANGUAGE c STABLE STRICT ROWS 300 AS 'MODULE_PATHNAME', 'unpack_outcomes_wrapper';
COMMENT ON FUNCTION pgwh_internal.unpack_outcomes(bytea) IS 'the outcomes of a row of pgwh_internal.outcome_chunks; events has those of a replay''s delivery, and is null for others';

CREATE FUNCTION pgwh_internal.pending_deliveries(
    OUT id bigint, OUT subscription_id bigint, OUT event_id text, OUT attempts integer, OUT next_attempt_at timestamptz,
    OUT committed_at timestamptz
) RETURNS SETOF record
    LANGUAGE c STABLE ROWS 1000 SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'pending_deliveries_wrapper';
COMMENT ON FUNCTION pgwh_internal.pending_deliveries() IS 'deliveries that are not done, as a new start of the dispatcher would find them in the journal';

CREATE FUNCTION pgwh_internal.deliveries_under_way() RETURNS SETOF bigint
    LANGUAGE c VOLATILE ROWS 100 AS 'MODULE_PATHNAME', 'deliveries_under_way_wrapper';
COMMENT ON FUNCTION pgwh_internal.deliveries_under_way() IS 'deliveries whose request is under way right now; of a batch, its first';

-- Views read the tables as the extension's owner, and show each role what belongs to it. A barrier keeps functions in a
-- caller's conditions from what is left out.
CREATE FUNCTION pgwh_internal.readable_columns(relation oid) RETURNS text[]
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'readable_columns_wrapper';
COMMENT ON FUNCTION pgwh_internal.readable_columns(oid) IS 'the columns of a table that the caller may read by now; null when that is all, none when the table is gone';

CREATE FUNCTION pgwh_internal.readable(relation oid, data jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    BEGIN ATOMIC
        SELECT CASE WHEN c.names IS NULL THEN data WHEN c.names <> '{}' THEN (
            SELECT jsonb_object_agg(p.key, CASE
                WHEN p.key IN ('record', 'changes', 'old_key', 'key') AND jsonb_typeof(p.value) = 'object' THEN coalesce(
                    (SELECT jsonb_object_agg(v.key, v.value) FROM jsonb_each(p.value) v WHERE v.key = ANY (c.names)), '{}')
                ELSE p.value END)
            FROM jsonb_each(data) p) END
        FROM (SELECT pgwh_internal.readable_columns(relation)) c (names);
    END;
COMMENT ON FUNCTION pgwh_internal.readable(oid, jsonb) IS 'what the caller may read by now of an event of a table; null when that is nothing';

CREATE VIEW pgwh.events WITH (security_barrier) AS
    WITH own AS MATERIALIZED (
        SELECT pgwh_internal.sees(NULL) AS all_of_them,
            CASE WHEN NOT pgwh_internal.sees(NULL) THEN ARRAY(SELECT s.id FROM pgwh.subscriptions s WHERE pgwh_internal.sees(s.owner)) END AS ids
    )
    SELECT e.id, '0/0'::pg_lsn + e.commit_lsn::numeric AS commit_lsn, e.xid, e.ordinal, e.committed_at,
        n.schema_name, n.table_name, e.action,
        d.data -> 'key' AS key, d.data - 'subscription' AS data, e.error,
        CASE WHEN o.all_of_them THEN e.delivery_ids
            ELSE ARRAY(SELECT m.id FROM unnest(e.delivery_ids, e.subscription_ids) m (id, whose) WHERE m.whose = ANY (o.ids)) END AS delivery_ids,
        CASE WHEN o.all_of_them THEN e.subscription_ids
            ELSE ARRAY(SELECT m.whose FROM unnest(e.subscription_ids) m (whose) WHERE m.whose = ANY (o.ids)) END AS subscription_ids
    FROM own o CROSS JOIN pgwh_internal.event_chunks c, LATERAL pgwh_internal.unpack_events(c.first_id, c.body) e,
        LATERAL (SELECT convert_from(e.schema_name, 'UTF8'), convert_from(e.table_name, 'UTF8')) n (schema_name, table_name),
        LATERAL (SELECT CASE WHEN o.all_of_them OR e.action IN ('ddl', 'message') THEN convert_from(e.payload, 'UTF8')::jsonb -> 'data'
            ELSE pgwh_internal.readable(e.relation, convert_from(e.payload, 'UTF8')::jsonb -> 'data') END) d (data)
    WHERE o.all_of_them OR e.subscription_ids && o.ids;
COMMENT ON VIEW pgwh.events IS 'captured changes, kept for pgwh.retention after they are delivered';
COMMENT ON COLUMN pgwh.events.id IS 'the event''s id, which receivers see; ids sort in commit order';
COMMENT ON COLUMN pgwh.events.commit_lsn IS 'where its transaction committed';
COMMENT ON COLUMN pgwh.events.xid IS 'its transaction';
COMMENT ON COLUMN pgwh.events.ordinal IS 'its place in the transaction';
COMMENT ON COLUMN pgwh.events.committed_at IS 'when it was committed';
COMMENT ON COLUMN pgwh.events.schema_name IS 'schema of the table';
COMMENT ON COLUMN pgwh.events.table_name IS 'the table that was changed; of a partitioned table, the partition';
COMMENT ON COLUMN pgwh.events.action IS 'insert, update, delete, truncate, read, ddl or message';
COMMENT ON COLUMN pgwh.events.key IS 'key of the row';
COMMENT ON COLUMN pgwh.events.data IS 'what the format pgwh sends as data, as far as you may read the table by now';
COMMENT ON COLUMN pgwh.events.error IS 'why it could not be encoded; null when it could';
COMMENT ON COLUMN pgwh.events.delivery_ids IS 'its deliveries';
COMMENT ON COLUMN pgwh.events.subscription_ids IS 'the subscriptions that these are for, in the same order';

-- Who sees what is said outside of the UNION ALL: Postgres takes the barrier of a view that is nothing but one for nothing.
CREATE VIEW pgwh.deliveries WITH (security_barrier) AS
    SELECT d.id, d.subscription_id, s.name AS subscription, d.state, d.event_id, d.event_count, d.attempts, d.status_code,
        d.error_class, d.error, d.duration_ms, d.created_at, d.next_attempt_at, d.delivered_at, d.replay
    FROM (
        SELECT o.id, o.subscription_id, CASE WHEN o.dead THEN 'dead' ELSE 'delivered' END AS state,
            o.event_id, cardinality(o.members) AS event_count, o.attempts, o.status_code, o.error_class, o.error, o.duration_ms,
            o.committed_at AS created_at, NULL::timestamptz AS next_attempt_at,
            CASE WHEN NOT o.dead THEN o.finished_at END AS delivered_at, o.replay
        FROM pgwh_internal.outcome_chunks c, LATERAL pgwh_internal.unpack_outcomes(c.body) o
        UNION ALL
        SELECT (p.d).id, (p.d).subscription_id,
            CASE WHEN u.id IS NOT NULL THEN 'sending' WHEN (p.d).attempts > 0 THEN 'retrying' ELSE 'pending' END,
            (p.d).event_id, 1, (p.d).attempts, a.status_code, a.error_class, a.error, a.duration_ms,
            (p.d).committed_at, (p.d).next_attempt_at, NULL, NULL
        FROM (SELECT pgwh_internal.pending_deliveries() AS d) p
            LEFT JOIN pgwh_internal.deliveries_under_way() u (id) ON u.id = (p.d).id
            LEFT JOIN LATERAL (
                SELECT a.status_code, a.error_class, a.error, a.duration_ms FROM pgwh_internal.attempt_rows a
                WHERE (p.d).attempts > 0 AND a.delivery_id = (p.d).id ORDER BY a.seq DESC LIMIT 1) a ON true
    ) d LEFT JOIN pgwh.subscriptions s ON s.id = d.subscription_id
    WHERE pgwh_internal.sees(s.owner);
COMMENT ON VIEW pgwh.deliveries IS 'one row a request that is done, and one a delivery that is not';
COMMENT ON COLUMN pgwh.deliveries.id IS 'number of the delivery; of a batch, its first member''s';
COMMENT ON COLUMN pgwh.deliveries.subscription_id IS 'who gets it';
COMMENT ON COLUMN pgwh.deliveries.subscription IS 'name of that subscription; null when it is gone';
COMMENT ON COLUMN pgwh.deliveries.state IS 'pending, sending (a request is under way; of a batch, this shows at its first), retrying, delivered or dead';
COMMENT ON COLUMN pgwh.deliveries.event_id IS 'its event; of a batch, the first';
COMMENT ON COLUMN pgwh.deliveries.event_count IS 'how many events it brings';
COMMENT ON COLUMN pgwh.deliveries.attempts IS 'how many requests were made';
COMMENT ON COLUMN pgwh.deliveries.status_code IS 'HTTP status of the last response';
COMMENT ON COLUMN pgwh.deliveries.error_class IS 'kind of the last error';
COMMENT ON COLUMN pgwh.deliveries.error IS 'what the last error was, or why it was given up';
COMMENT ON COLUMN pgwh.deliveries.duration_ms IS 'how long the last request took, in milliseconds';
COMMENT ON COLUMN pgwh.deliveries.created_at IS 'when the event was committed';
COMMENT ON COLUMN pgwh.deliveries.next_attempt_at IS 'when the next request is due';
COMMENT ON COLUMN pgwh.deliveries.delivered_at IS 'when the endpoint had taken it';
COMMENT ON COLUMN pgwh.deliveries.replay IS 'the replay that it was sent in; null when it was sent for the first time';

CREATE VIEW pgwh.attempts WITH (security_barrier) AS
    SELECT a.delivery_id, a.attempt, a.started_at, a.duration_ms, a.status_code, a.error_class, a.error, a.response,
        a.subscription_id, a.next_attempt_at, a.replay
    FROM (
        SELECT a.delivery_id, a.attempt, a.started_at, a.duration_ms, a.status_code, a.error_class, a.error, a.response,
            a.subscription_id, a.next_attempt_at, a.replay
        FROM pgwh_internal.attempt_rows a
        UNION ALL
        SELECT o.id, o.attempts, o.finished_at - o.duration_ms * interval '1 ms', o.duration_ms, o.status_code, NULL, NULL, NULL,
            o.subscription_id, NULL, o.replay
        FROM pgwh_internal.outcome_chunks c, LATERAL pgwh_internal.unpack_outcomes(c.body) o
        WHERE o.attempts > 1 AND NOT o.dead AND NOT EXISTS (
            SELECT FROM pgwh_internal.attempt_rows r WHERE r.delivery_id = o.id AND r.attempt = o.attempts AND r.error_class IS NULL)
    ) a LEFT JOIN pgwh.subscriptions s ON s.id = a.subscription_id
    WHERE pgwh_internal.sees(s.owner);
COMMENT ON VIEW pgwh.attempts IS 'requests one by one, except those that succeeded at once with a sound response';
COMMENT ON COLUMN pgwh.attempts.delivery_id IS 'the delivery; of a batch, its first member''s';
COMMENT ON COLUMN pgwh.attempts.attempt IS 'which request, counted from 1';
COMMENT ON COLUMN pgwh.attempts.started_at IS 'when it was sent';
COMMENT ON COLUMN pgwh.attempts.duration_ms IS 'how long it took, in milliseconds';
COMMENT ON COLUMN pgwh.attempts.status_code IS 'HTTP status of the response; null when there was none';
COMMENT ON COLUMN pgwh.attempts.error_class IS 'kind of error; null when it succeeded';
COMMENT ON COLUMN pgwh.attempts.error IS 'what went wrong; of a success, what is wrong with the body of the response';
COMMENT ON COLUMN pgwh.attempts.response IS 'beginning of the response to a request that failed';
COMMENT ON COLUMN pgwh.attempts.subscription_id IS 'whose it was';
COMMENT ON COLUMN pgwh.attempts.next_attempt_at IS 'when the next one was due; null when it was the last';
COMMENT ON COLUMN pgwh.attempts.replay IS 'the replay that it belongs to';

CREATE VIEW pgwh.dead_letters WITH (security_barrier) AS
    SELECT m.id, o.subscription_id, s.name AS subscription, e.id AS event_id, o.attempts, o.status_code, o.error_class,
        o.error AS reason, o.finished_at AS died_at, e.committed_at AS created_at,
        n.schema_name, n.table_name, e.action, d.data -> 'key' AS key, d.data - 'subscription' AS data
    FROM pgwh_internal.outcome_chunks c
        CROSS JOIN LATERAL pgwh_internal.unpack_outcomes(c.body) o
        CROSS JOIN LATERAL unnest(o.members) m (id)
        LEFT JOIN pgwh.subscriptions s ON s.id = o.subscription_id
        LEFT JOIN LATERAL (
            SELECT e.* FROM (
                SELECT h.first_id, h.body FROM pgwh_internal.event_chunks h WHERE h.last_id >= m.id ORDER BY h.last_id LIMIT 1) h,
                LATERAL pgwh_internal.unpack_events(h.first_id, h.body) e
            WHERE m.id = ANY (e.delivery_ids)) e ON true
        CROSS JOIN LATERAL (SELECT convert_from(e.schema_name, 'UTF8'), convert_from(e.table_name, 'UTF8')) n (schema_name, table_name)
        CROSS JOIN LATERAL (SELECT CASE
            WHEN pgwh_internal.sees(NULL) OR e.action IN ('ddl', 'message') THEN convert_from(e.payload, 'UTF8')::jsonb -> 'data'
            ELSE pgwh_internal.readable(e.relation, convert_from(e.payload, 'UTF8')::jsonb -> 'data') END) d (data)
    WHERE pgwh_internal.sees(s.owner) AND c.dead > 0 AND o.dead AND o.replay IS NULL AND NOT EXISTS (
        SELECT FROM pgwh_internal.outcome_chunks r
            CROSS JOIN LATERAL pgwh_internal.unpack_outcomes(r.body) again CROSS JOIN LATERAL unnest(again.events) took (event_id)
        WHERE r.replayed > 0 AND again.replay IS NOT NULL AND NOT again.dead
            AND again.subscription_id = o.subscription_id AND took.event_id = o.event_id);
COMMENT ON VIEW pgwh.dead_letters IS 'deliveries given up, with the reason and the event, unless a replay has brought that event after all';
COMMENT ON COLUMN pgwh.dead_letters.id IS 'number of the delivery: SELECT pgwh.redeliver(id)';
COMMENT ON COLUMN pgwh.dead_letters.subscription_id IS 'who did not get it';
COMMENT ON COLUMN pgwh.dead_letters.subscription IS 'name of that subscription; null when it is gone';
COMMENT ON COLUMN pgwh.dead_letters.event_id IS 'its event; null when the journal does not have that any more';
COMMENT ON COLUMN pgwh.dead_letters.attempts IS 'how many requests were made';
COMMENT ON COLUMN pgwh.dead_letters.status_code IS 'HTTP status of the last response';
COMMENT ON COLUMN pgwh.dead_letters.error_class IS 'kind of the last error';
COMMENT ON COLUMN pgwh.dead_letters.reason IS 'why it was given up';
COMMENT ON COLUMN pgwh.dead_letters.died_at IS 'when it was given up';
COMMENT ON COLUMN pgwh.dead_letters.created_at IS 'when the event was committed';
COMMENT ON COLUMN pgwh.dead_letters.schema_name IS 'schema of the table';
COMMENT ON COLUMN pgwh.dead_letters.table_name IS 'the table that was changed';
COMMENT ON COLUMN pgwh.dead_letters.action IS 'insert, update, delete, truncate, read, ddl or message';
COMMENT ON COLUMN pgwh.dead_letters.key IS 'key of the row';
COMMENT ON COLUMN pgwh.dead_letters.data IS 'what the format pgwh sends as data, as far as you may read the table by now';

CREATE FUNCTION pgwh_internal.dead_letter_counts(OUT subscription_id bigint, OUT dead bigint, OUT skipped bigint) RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT d.subscription_id, coalesce(sum(d.events) FILTER (WHERE NOT d.skipped), 0)::bigint,
            coalesce(sum(d.events) FILTER (WHERE d.skipped), 0)::bigint
        FROM (
            SELECT o.subscription_id, o.event_id, cardinality(o.members) AS events, o.error = 'skipped' AS skipped
            FROM pgwh_internal.outcome_chunks c CROSS JOIN LATERAL pgwh_internal.unpack_outcomes(c.body) o
            WHERE c.dead > 0 AND o.dead AND o.replay IS NULL) d
        WHERE (d.subscription_id, d.event_id) NOT IN (
            SELECT again.subscription_id, took.event_id FROM pgwh_internal.outcome_chunks r
                CROSS JOIN LATERAL pgwh_internal.unpack_outcomes(r.body) again CROSS JOIN LATERAL unnest(again.events) took (event_id)
            WHERE r.replayed > 0 AND again.replay IS NOT NULL AND NOT again.dead)
        GROUP BY d.subscription_id;
    END;
COMMENT ON FUNCTION pgwh_internal.dead_letter_counts() IS 'how many dead letters subscriptions have, those that were skipped by pgwh.skip() apart from the others';

-- ---------------------------------------------------------------------------------------------------------------
-- Commands

CREATE TABLE pgwh_internal.commands (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    command text NOT NULL CHECK (command IN ('reload', 'retry', 'skip', 'replay', 'cancel_replay', 'forget', 'discard',
        'backfill', 'pause_backfill', 'resume_backfill', 'cancel_backfill', 'disable')),
    subscription_id bigint,
    delivery_id bigint,
    replay_id bigint,
    backfill_id bigint,
    reason text,
    url text,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX commands_to_disable ON pgwh_internal.commands (subscription_id) WHERE command = 'disable';
COMMENT ON TABLE pgwh_internal.commands IS 'what sessions ask of the dispatcher, told to it when they commit; it deletes a row when that is done';
COMMENT ON COLUMN pgwh_internal.commands.id IS 'order in which they were given';
COMMENT ON COLUMN pgwh_internal.commands.command IS 'reload (read a subscription again), retry (try at once what failed), skip, replay, cancel_replay, forget (forget what was read of the journal, and the last error of the subscription), discard (forget what is pending), backfill, pause_backfill, resume_backfill, cancel_backfill, or disable (of the dispatcher''s own: its row could not be written yet)';
COMMENT ON COLUMN pgwh_internal.commands.subscription_id IS 'the subscription it is about';
COMMENT ON COLUMN pgwh_internal.commands.delivery_id IS 'the delivery to skip, or the last one to discard';
COMMENT ON COLUMN pgwh_internal.commands.replay_id IS 'the replay to begin or cancel';
COMMENT ON COLUMN pgwh_internal.commands.backfill_id IS 'the backfill to begin, pause, resume or cancel';
COMMENT ON COLUMN pgwh_internal.commands.reason IS 'why the subscription is to be disabled';
COMMENT ON COLUMN pgwh_internal.commands.url IS 'the url that the subscription had then, and is disabled for; null: whichever it has';
COMMENT ON COLUMN pgwh_internal.commands.at IS 'when it was given';

CREATE TABLE pgwh.replays (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id bigint NOT NULL,
    subscription text NOT NULL,
    since timestamptz,
    until timestamptz,
    since_lsn pg_lsn,
    until_lsn pg_lsn,
    "only" text NOT NULL DEFAULT 'all' CHECK ("only" IN ('all', 'dead', 'undelivered')),
    tables text[],
    deliveries bigint[],
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'cancelled', 'failed')),
    reason text,
    total bigint,
    done bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    first_id bigint,
    last_id bigint,
    cursor_id bigint
);
CREATE INDEX replays_open ON pgwh.replays (id) WHERE state IN ('waiting', 'running');
COMMENT ON TABLE pgwh.replays IS 'what was asked for by pgwh.replay() and pgwh.redeliver(), and how far that is; replays of one subscription run one after the other';
COMMENT ON COLUMN pgwh.replays.id IS 'its id, which the header webhook-replay has';
COMMENT ON COLUMN pgwh.replays.subscription_id IS 'who gets the events again';
COMMENT ON COLUMN pgwh.replays.subscription IS 'the subscription''s name when the replay was asked for';
COMMENT ON COLUMN pgwh.replays.since IS 'events committed from then on';
COMMENT ON COLUMN pgwh.replays.until IS 'events committed up to then; null: up to when the replay began';
COMMENT ON COLUMN pgwh.replays.since_lsn IS 'events whose commit is at that position or behind it';
COMMENT ON COLUMN pgwh.replays.until_lsn IS 'events whose commit is at that position or before it; null: up to when the replay began';
COMMENT ON COLUMN pgwh.replays."only" IS 'all events, dead ones, or undelivered ones (dead or pending)';
COMMENT ON COLUMN pgwh.replays.tables IS 'events of tables that match one of these patterns; null: of all tables';
COMMENT ON COLUMN pgwh.replays.deliveries IS 'of pgwh.redeliver(): events of these deliveries, and what has happened to their rows since';
COMMENT ON COLUMN pgwh.replays.state IS 'waiting, running, done (all events have been given to sending), cancelled or failed';
COMMENT ON COLUMN pgwh.replays.reason IS 'why it failed or was cancelled';
COMMENT ON COLUMN pgwh.replays.total IS 'how many events it is about; null until that is known';
COMMENT ON COLUMN pgwh.replays.done IS 'how many of them have been delivered again, or given up';
COMMENT ON COLUMN pgwh.replays.created_at IS 'when it was asked for';
COMMENT ON COLUMN pgwh.replays.started_at IS 'when it began';
COMMENT ON COLUMN pgwh.replays.finished_at IS 'when it ended';
COMMENT ON COLUMN pgwh.replays.first_id IS 'the first delivery that it looks at; set when it begins';
COMMENT ON COLUMN pgwh.replays.last_id IS 'the last delivery that it looks at; set when it begins';
COMMENT ON COLUMN pgwh.replays.cursor_id IS 'the delivery up to which all is done; a new start goes on behind it';

-- ---------------------------------------------------------------------------------------------------------------
-- Looking

CREATE FUNCTION pgwh_internal.url_problem(url text, OUT problem text, OUT cure text) RETURNS record
    LANGUAGE c STABLE COST 5 AS 'MODULE_PATHNAME', 'url_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.url_problem(text) IS 'why a URL that was once accepted would be refused today, and what to type, as the refusal says it; null when it would not';

CREATE FUNCTION pgwh_internal.cure_in(error text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    BEGIN ATOMIC
        SELECT substring(error FROM 'ALTER SYSTEM SET pgwh\.allowed_networks = ''[^'']*''; SELECT pg_reload_conf\(\);');
    END;
COMMENT ON FUNCTION pgwh_internal.cure_in(text) IS 'what to type about a request that failed, if the error says it: an address that is not allowed';

CREATE FUNCTION pgwh_internal.tables_problem(tables text[], OUT problem text, OUT fails boolean, OUT stops boolean, OUT change text, OUT cure text) RETURNS record
    LANGUAGE c STABLE COST 10 AS 'MODULE_PATHNAME', 'tables_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.tables_problem(text[]) IS 'why tables that were once accepted would be refused today, or which patterns match no table, whether the subscription is wrong by that, whether it gets nothing at all, what to set and what to type otherwise; null when all is well';

CREATE FUNCTION pgwh_internal.parts_problem(tables text[], event_types text[],
    OUT problem text, OUT stops boolean, OUT change text, OUT cure text) RETURNS record
    LANGUAGE c STABLE COST 20 AS 'MODULE_PATHNAME', 'parts_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.parts_problem(text[], text[]) IS 'partitions and children of a subscription''s tables that are not in the log or lack the others'' REPLICA IDENTITY, whether the subscription names a table that misses rows by that, what to set and what to type otherwise; null when there are none';

CREATE FUNCTION pgwh_internal.condition_problem(
    tables text[], event_types text[], filter text, changed text[], key_columns text[],
    OUT problem text, OUT stops boolean, OUT change text, OUT cure text
) RETURNS record
    LANGUAGE c STABLE COST 20 AS 'MODULE_PATHNAME', 'condition_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.condition_problem(text[], text[], text, text[], text[]) IS 'what of a subscription''s filter, changed and key_columns does not fit its tables today, whether it is wrong by that or only leaves out tables of its wildcards, what to set and what to type otherwise; null when all fits';

CREATE FUNCTION pgwh_internal.permission_problem(
    owner text, tables text[], event_types text[], filter text, changed text[], columns text[], exclude_columns text[],
    key_columns text[], OUT problem text, OUT cure text, OUT stops boolean
) RETURNS record
    LANGUAGE c STABLE COST 20 AS 'MODULE_PATHNAME', 'permission_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.permission_problem(text, text[], text[], text, text[], text[], text[], text[]) IS 'the first table that a subscription gets nothing of since its owner may not read it, what to type, and whether it names that table; null when there is none';

CREATE FUNCTION pgwh_internal.capture_problem() RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'capture_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.capture_problem() IS 'why this database''s workers could not do their work when they last tried; null when they could';

CREATE FUNCTION pgwh_internal.lacks_renderer() RETURNS boolean
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'lacks_renderer_wrapper';
COMMENT ON FUNCTION pgwh_internal.lacks_renderer() IS 'whether events wait for a transform or route, and no worker process is free to run it';

CREATE FUNCTION pgwh_internal.lacks_backfiller() RETURNS boolean
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'lacks_backfiller_wrapper';
COMMENT ON FUNCTION pgwh_internal.lacks_backfiller() IS 'whether a backfill waits, and no worker process is free to read it';

CREATE FUNCTION pgwh_internal.notice_problem() RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'notice_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.notice_problem() IS 'why this database''s workers could not send notifications or system events when they last tried; null when they could';

CREATE FUNCTION pgwh_internal.memory_problem() RETURNS text
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'memory_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.memory_problem() IS 'what this database''s workers put off since dynamic shared memory is full, and why; null when nothing is';

CREATE FUNCTION pgwh_internal.delivery_stats(
    subscription_id bigint, OUT is_failing boolean, OUT pending bigint, OUT retrying bigint, OUT in_flight bigint, OUT delivered bigint,
    OUT dropped bigint, OUT dead bigint, OUT blocked_keys bigint, OUT reached bigint, OUT oldest_pending timestamptz,
    OUT last_success_at timestamptz, OUT last_failure_at timestamptz, OUT next_attempt_at timestamptz, OUT last_status integer,
    OUT p50_ms double precision, OUT p99_ms double precision, OUT mode text, OUT bottleneck text, OUT last_error text
) RETURNS record
    LANGUAGE c STABLE COST 5 AS 'MODULE_PATHNAME', 'delivery_stats_wrapper';
COMMENT ON FUNCTION pgwh_internal.delivery_stats(bigint) IS 'what the dispatcher of this database counts for a subscription, null while it does not know of it; pgwh.status() shows it in plain words';

CREATE TABLE pgwh_internal.backfill_requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id bigint NOT NULL,
    subscription text NOT NULL,
    tables text[] NOT NULL,
    filter text,
    order_by text,
    start text,
    chunk_size integer,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'paused', 'done', 'cancelled', 'failed')),
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz
);
CREATE INDEX backfill_requests_open ON pgwh_internal.backfill_requests (id) WHERE state IN ('waiting', 'running', 'paused');
CREATE INDEX backfill_requests_of ON pgwh_internal.backfill_requests (subscription_id);
COMMENT ON TABLE pgwh_internal.backfill_requests IS 'what was asked for by pgwh.backfill(); pgwh.backfills shows how far it is';
COMMENT ON COLUMN pgwh_internal.backfill_requests.id IS 'its id';
COMMENT ON COLUMN pgwh_internal.backfill_requests.subscription_id IS 'who gets the rows';
COMMENT ON COLUMN pgwh_internal.backfill_requests.subscription IS 'the subscription''s name when the backfill was asked for';
COMMENT ON COLUMN pgwh_internal.backfill_requests.tables IS 'patterns of tables; those of them that the subscription is about are read';
COMMENT ON COLUMN pgwh_internal.backfill_requests.filter IS 'rows for which this is true; null: all';
COMMENT ON COLUMN pgwh_internal.backfill_requests.order_by IS 'the column that rows are read in the order of, and then of the key; null: of the key';
COMMENT ON COLUMN pgwh_internal.backfill_requests.start IS 'rows whose value of that column is not less; null: all';
COMMENT ON COLUMN pgwh_internal.backfill_requests.chunk_size IS 'most rows that are read at once; null: as many as fit into 5 ms';
COMMENT ON COLUMN pgwh_internal.backfill_requests.state IS 'waiting, running, paused, done (all rows are journaled), cancelled or failed';
COMMENT ON COLUMN pgwh_internal.backfill_requests.reason IS 'why it failed or was cancelled';
COMMENT ON COLUMN pgwh_internal.backfill_requests.created_at IS 'when it was asked for';
COMMENT ON COLUMN pgwh_internal.backfill_requests.started_at IS 'when it began';
COMMENT ON COLUMN pgwh_internal.backfill_requests.finished_at IS 'when it ended';

CREATE TABLE pgwh_internal.backfill_tables (
    backfill_id bigint,
    relation oid,
    table_name text NOT NULL,
    estimate bigint,
    rows_read bigint NOT NULL DEFAULT 0,
    rows_sent bigint NOT NULL DEFAULT 0,
    seconds double precision NOT NULL DEFAULT 0,
    position bytea,
    definition bigint[],
    again boolean NOT NULL DEFAULT false,
    absent boolean NOT NULL DEFAULT false,
    left_out text,
    done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (backfill_id, relation)
) WITH (fillfactor = 50);
COMMENT ON TABLE pgwh_internal.backfill_tables IS 'how far backfills have read each table or partition; written by their workers only';
COMMENT ON COLUMN pgwh_internal.backfill_tables.backfill_id IS 'the backfill';
COMMENT ON COLUMN pgwh_internal.backfill_tables.relation IS 'oid of the table';
COMMENT ON COLUMN pgwh_internal.backfill_tables.table_name IS 'its name when the backfill came to it';
COMMENT ON COLUMN pgwh_internal.backfill_tables.estimate IS 'about how many rows it had then, by its size and the statistics of ANALYZE; null when another session had locked it';
COMMENT ON COLUMN pgwh_internal.backfill_tables.rows_read IS 'rows read so far';
COMMENT ON COLUMN pgwh_internal.backfill_tables.rows_sent IS 'of these, rows that became events: the others were filtered out, or a newer event tells of them';
COMMENT ON COLUMN pgwh_internal.backfill_tables.seconds IS 'time that took, in seconds';
COMMENT ON COLUMN pgwh_internal.backfill_tables.position IS 'values of the last row read in the columns of the order, as JSON in UTF-8';
COMMENT ON COLUMN pgwh_internal.backfill_tables.definition IS 'digests of the key and of each column of the order that position was taken in; with others the table is read from its start again';
COMMENT ON COLUMN pgwh_internal.backfill_tables.absent IS 'whether it was gone, renamed or detached when it was last looked at; should it come back before the end, it is read';
COMMENT ON COLUMN pgwh_internal.backfill_tables.left_out IS 'why it is not read; null when it is';
COMMENT ON COLUMN pgwh_internal.backfill_tables.again IS 'whether it is read once more: a row got another key, and write-ahead log did not have all of it';
COMMENT ON COLUMN pgwh_internal.backfill_tables.done IS 'whether it has been read to its end';

-- The barrier of pgwh.status: a caller's conditions are asked of these rows, and of the rows that are left what takes longer.
CREATE VIEW pgwh_internal.visible_subscriptions WITH (security_barrier) AS
    -- The path of a URL is often its secret: of a URL of another role there is only the server.
    SELECT id, name, CASE WHEN pgwh_internal.may_act_for(owner) THEN url ELSE substring(url FROM '^[^/?#]*//[^/?#\\]*') END AS url,
        tables, event_types, filter, changed, columns, exclude_columns, headers, key_columns, enabled, paused, disabled_reason, owner, home,
        transform IS NOT NULL OR route IS NOT NULL AS has_functions
    FROM pgwh.subscriptions WHERE (SELECT pgwh_internal.sees(NULL)) OR pgwh_internal.sees(owner)
    -- As pgwh.status shows them: in here, the order comes from the index instead of from sorting all of them with all they say.
    ORDER BY id;
COMMENT ON VIEW pgwh_internal.visible_subscriptions IS 'the subscriptions that the caller is shown, with what pgwh.status needs of them';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.id IS 'identity of the subscription, never reused; part of webhook-id';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.name IS 'its name; made from the url''s host, the tables and a digest when left out';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.url IS 'where to POST; scheme and host of a subscription whose owner the caller cannot act as';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.tables IS 'patterns schema.table with * wildcards; bare names are stored with the schema that the search path gave (default {*.*})';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.event_types IS 'any of insert, update, delete, truncate (or I U D T), ddl, message, message:<prefix>, read, system (default the first four)';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.filter IS 'a SQL condition over NEW and OLD; a bare column means NEW, in a delete OLD (default none)';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.changed IS 'updates only when one of these columns changed (default all updates)';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.columns IS 'columns that payloads hold, besides the key (default all)';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.exclude_columns IS 'columns that payloads leave out; the key stays (default none)';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.headers IS 'extra request headers: an object of strings (default {}); values of sensitive ones, such as authorization, are shown as hidden:...';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.key_columns IS 'columns by which changes are kept in order when ordering is key (default the primary key)';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.enabled IS 'whether changes are captured for it';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.paused IS 'whether changes are kept for later instead of being sent';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.disabled_reason IS 'why it was disabled, when that happened by itself; enabling it clears this';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.owner IS 'name of the role that it belongs to';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.has_functions IS 'whether it names a transform or route';
COMMENT ON COLUMN pgwh_internal.visible_subscriptions.home IS 'where it was made or last armed, see pgwh_internal.home(); SET home = DEFAULT arms it here, pgwh.adopt() all that are held';

CREATE FUNCTION pgwh_internal.backfill_problem(subscription_id bigint, table_name text) RETURNS text
    LANGUAGE c STABLE COST 20 AS 'MODULE_PATHNAME', 'backfill_problem_wrapper';
COMMENT ON FUNCTION pgwh_internal.backfill_problem(bigint, text) IS 'why a backfill of a table, or with null of all tables of a subscription, would be refused today; null when it would not. Tables that another session has locked are not looked at';

CREATE VIEW pgwh.open_gaps WITH (security_barrier) AS
    SELECT g.id, g.subscription_id, s.name, g.from_lsn, g.to_lsn,
        CASE WHEN g.relation IS NULL AND b.covered THEN b.left_out ELSE g.table_name END AS table_name, g.since, g.reason,
        CASE WHEN g.relation IS NULL THEN CASE WHEN b.covered OR pgwh_internal.backfill_problem(s.id, NULL) IS NOT NULL
                THEN coalesce((pgwh_internal.permission_problem(s.owner, s.tables, s.event_types, s.filter, s.changed, s.columns,
                    s.exclude_columns, s.key_columns)).cure, format('SELECT pgwh.acknowledge_gap(%s);', g.id))
                ELSE format('SELECT pgwh.backfill(%L);', s.name) END
            WHEN g.to_lsn IS NOT NULL THEN CASE WHEN pgwh_internal.backfill_problem(s.id, t.name) IS NOT NULL
                THEN coalesce((pgwh_internal.permission_problem(s.owner, ARRAY[t.name], s.event_types, s.filter, s.changed, s.columns,
                    s.exclude_columns, s.key_columns)).cure, format('SELECT pgwh.acknowledge_gap(%s);', g.id))
                ELSE format('SELECT pgwh.backfill(%L, %L);', s.name, t.name) END
            WHEN c.relpersistence = 'u' THEN format('ALTER TABLE %I.%I SET LOGGED;', n.nspname, c.relname)
            WHEN t.name <> g.table_name THEN format('UPDATE pgwh.subscriptions SET tables = %L WHERE name = %L;',
                array_append(array_remove(s.tables, g.table_name), t.name)::text, s.name)
            WHEN starts_with(g.reason, 'its filter does not fit ') THEN format('UPDATE pgwh.subscriptions SET filter = ''...'' WHERE name = %L;', s.name)
            WHEN starts_with(g.reason, 'its list changed does not fit ') THEN format('UPDATE pgwh.subscriptions SET changed = ''{...}'' WHERE name = %L;', s.name)
            ELSE (pgwh_internal.permission_problem(s.owner, ARRAY[g.table_name], s.event_types, s.filter, s.changed, s.columns,
                s.exclude_columns, s.key_columns)).cure END AS next_step
    FROM pgwh.gaps g JOIN pgwh_internal.visible_subscriptions s ON s.id = g.subscription_id
        LEFT JOIN pg_catalog.pg_class c ON c.oid = g.relation
        LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        -- The name that it has now, unless another table has the one that it had.
        CROSS JOIN LATERAL (SELECT CASE WHEN c.oid IS NULL OR to_regclass(g.table_name) IS NOT NULL THEN g.table_name
            ELSE format('%I.%I', n.nspname, c.relname) END AS name) t
        -- What is read after its end shows the rows that it lacks.
        CROSS JOIN LATERAL (SELECT ARRAY(
            SELECT r.id FROM pgwh_internal.backfill_requests r
            WHERE r.subscription_id = s.id AND (r.started_at IS NULL OR r.started_at > g.until)
                AND r.filter IS NULL AND r.start IS NULL AND r.state NOT IN ('cancelled', 'failed')) AS ids) r
        -- Of a gap of all tables: whether these read all of them, but for the tables that they left out.
        CROSS JOIN LATERAL (SELECT
            g.relation IS NULL AND s.tables <@ ARRAY(SELECT unnest(q.tables) FROM pgwh_internal.backfill_requests q WHERE q.id = ANY (r.ids)) AS covered,
            CASE WHEN g.relation IS NULL THEN (SELECT string_agg(DISTINCT l.table_name, ', ' ORDER BY l.table_name) FROM pgwh_internal.backfill_tables l
                WHERE l.backfill_id = ANY (r.ids) AND l.left_out IS NOT NULL AND NOT EXISTS (SELECT FROM pgwh_internal.backfill_tables d
                    WHERE d.backfill_id = ANY (r.ids) AND d.relation = l.relation AND d.left_out IS NULL)) END AS left_out) b
    WHERE g.acknowledged_at IS NULL AND CASE WHEN g.relation IS NULL THEN g.lost AND (NOT b.covered OR b.left_out IS NOT NULL)
        -- A disabled subscription misses nothing yet.
        ELSE CASE WHEN g.to_lsn IS NULL THEN s.enabled ELSE NOT EXISTS (
            SELECT FROM pgwh_internal.backfill_requests q
            WHERE q.id = ANY (r.ids)
                AND (g.table_name = ANY (q.tables) OR s.tables <@ q.tables
                    OR EXISTS (SELECT FROM pgwh_internal.backfill_tables t WHERE t.backfill_id = q.id AND t.relation = g.relation))
                AND NOT EXISTS (SELECT FROM pgwh_internal.backfill_tables t
                    WHERE t.backfill_id = q.id AND t.relation = g.relation AND t.left_out IS NOT NULL)) END
        END;
COMMENT ON VIEW pgwh.open_gaps IS 'what subscriptions miss though they are enabled, no backfill has sent since and nobody has acknowledged';
COMMENT ON COLUMN pgwh.open_gaps.id IS 'identity of the gap';
COMMENT ON COLUMN pgwh.open_gaps.subscription_id IS 'the subscription';
COMMENT ON COLUMN pgwh.open_gaps.name IS 'its name';
COMMENT ON COLUMN pgwh.open_gaps.from_lsn IS 'changes committed from this position on are missing';
COMMENT ON COLUMN pgwh.open_gaps.to_lsn IS 'up to this one; null while changes are missed still';
COMMENT ON COLUMN pgwh.open_gaps.table_name IS 'the table whose changes are missing, or the tables that a backfill of all left out; null: changes of all tables';
COMMENT ON COLUMN pgwh.open_gaps.since IS 'when it was noted';
COMMENT ON COLUMN pgwh.open_gaps.reason IS 'how it came about';
COMMENT ON COLUMN pgwh.open_gaps.next_step IS 'what to type: what ends the gap, and then the backfill that sends the rows that there are, or pgwh.acknowledge_gap(id) where they cannot be read; deleted rows are known to nobody';

CREATE FUNCTION pgwh_internal.unclosed_gaps(
    OUT id bigint, OUT subscription_id bigint, OUT from_lsn pg_lsn, OUT to_lsn pg_lsn, OUT table_name text,
    OUT since timestamptz, OUT reason text, OUT next_step text
) RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT g.id, g.subscription_id, g.from_lsn, g.to_lsn, g.table_name, g.since, g.reason, g.next_step FROM pgwh.open_gaps g;
    END;
COMMENT ON FUNCTION pgwh_internal.unclosed_gaps() IS 'what subscriptions miss though they are enabled, and no backfill has sent since';

CREATE FUNCTION pgwh.slot_name() RETURNS name
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
        -- Of a copy that was made from a template, the row names the slot of the original.
        SELECT coalesce((SELECT s.slot_name FROM pg_catalog.pg_replication_slots s
                WHERE s.slot_name = i.slot_name::name AND s.datoid = d.oid),
            nullif(current_setting('pgwh.slot_name', true), '')::name,
            format('pgwh_%s_%s', d.oid, left(i.id::text, 8))::name)
        FROM pgwh_internal.installation i, pg_catalog.pg_database d
        WHERE d.datname = pg_catalog.current_database();
    END;
COMMENT ON FUNCTION pgwh.slot_name() IS 'name of this database''s replication slot: while there is none, what the setting pgwh.slot_name says';

CREATE FUNCTION pgwh_internal.slot_is_ephemeral(slot name) RETURNS boolean
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'slot_is_ephemeral_wrapper';
COMMENT ON FUNCTION pgwh_internal.slot_is_ephemeral(name) IS 'whether a replication slot is being made: it may be given up and made anew, which pg_replication_slots does not show';

CREATE FUNCTION pgwh_internal.worker_processes(OUT type text, OUT pid integer) RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'worker_processes_wrapper';
COMMENT ON FUNCTION pgwh_internal.worker_processes() IS 'launcher, and dispatcher and decoder of this database: their process id, null of one that does not run';

CREATE FUNCTION pgwh_internal.workers_in_use() RETURNS integer
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'workers_in_use_wrapper';
COMMENT ON FUNCTION pgwh_internal.workers_in_use() IS 'how many of max_worker_processes are in use';

-- What a check of health needs and who asks may not look at: without it, an application's role would have to be granted
-- a look at everybody's commands.
CREATE FUNCTION pgwh.oldest_transaction(xid bigint DEFAULT NULL, OUT who text, OUT next_step text) RETURNS SETOF record
    LANGUAGE sql VOLATILE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT b.who, b.next_step FROM (
            SELECT a.backend_xid AS xid, format('transaction %s of process %s (%s, %s) in database %I', a.backend_xid, a.pid,
                a.usename, a.state, a.datname) AS who, format('SELECT pg_terminate_backend(%s);', a.pid) AS next_step
            FROM pg_catalog.pg_stat_activity a
            WHERE CASE WHEN oldest_transaction.xid IS NULL THEN a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()
                ELSE a.backend_xid::text::bigint = oldest_transaction.xid END
            UNION ALL
            SELECT p.transaction, format('prepared transaction %L in database %I (COMMIT PREPARED ends it, too)', p.gid, p.database),
                format('ROLLBACK PREPARED %L;', p.gid)
            FROM pg_catalog.pg_prepared_xacts p
            WHERE oldest_transaction.xid IS NULL OR p.transaction::text::bigint = oldest_transaction.xid
        ) b ORDER BY age(b.xid) DESC LIMIT 1;
    END;
COMMENT ON FUNCTION pgwh.oldest_transaction(bigint) IS 'the oldest transaction that writes, which a new slot waits for, or the one of that xid, and how to end it';

CREATE FUNCTION pgwh_internal.transaction_keeping_wal(kept_from bigint) RETURNS bigint
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'transaction_keeping_wal_wrapper';
COMMENT ON FUNCTION pgwh_internal.transaction_keeping_wal(bigint) IS 'xid of the transaction for which the slot keeps WAL from that position on, since it may still commit; null when it is kept for another reason';

CREATE FUNCTION pgwh_internal.lock_holders(subscription_id bigint DEFAULT NULL, OUT stops boolean, OUT waiting text, OUT who text, OUT cure text) RETURNS SETOF record
    -- Stable, so that pgwh.status asks only when a column that needs it is wanted.
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        WITH worker AS MATERIALIZED (
            SELECT a.pid, a.backend_type FROM pg_catalog.pg_stat_activity a
            WHERE a.datname = current_database() AND starts_with(a.backend_type, 'pgstream_hooks ') AND a.wait_event_type = 'Lock'
        ), lock AS MATERIALIZED (
            SELECT l.*, l.virtualtransaction AS holder FROM pg_catalog.pg_locks l
            WHERE subscription_id IS NOT NULL OR EXISTS (SELECT FROM worker) OR EXISTS (SELECT FROM pgwh_internal.commands c WHERE c.at < clock_timestamp() - interval '1 s')
        ), awaited AS (
            -- What a worker waits for, and each transaction that has that now.
            SELECT format('the %s waits for a lock on %s', split_part(w.backend_type, ' ', 2),
                    CASE WHEN l.locktype IN ('relation', 'tuple', 'extend', 'page') THEN 'table ' || l.relation::regclass
                        WHEN l.locktype IN ('transactionid', 'virtualxid') THEN 'a row' ELSE format('what pg_locks calls %s', l.locktype) END) AS waiting, h.holder,
                -- Who reads or renders stops nobody else.
                CASE WHEN w.backend_type IN ('pgstream_hooks dispatcher', 'pgstream_hooks decoder') THEN 1 ELSE 2 END AS rank
            FROM worker w JOIN lock l ON l.pid = w.pid AND NOT l.granted AND l.waitstart < clock_timestamp() - interval '1 s'
                JOIN lock h ON h.granted AND h.locktype = l.locktype AND h.pid IS DISTINCT FROM l.pid
                    AND (h.database, h.relation, h.page, h.tuple, h.virtualxid, h.transactionid, h.classid, h.objid, h.objsubid)
                        IS NOT DISTINCT FROM (l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid, l.classid, l.objid, l.objsubid)
                    AND (h.pid IS NULL OR h.pid = ANY (pg_blocking_pids(l.pid)))
            UNION ALL
            -- What workers don't wait for and put off: tables,
            SELECT 'work is put off until it can lock table ' || h.relation::regclass, h.holder, 2
            FROM lock h
            WHERE h.granted AND h.locktype = 'relation' AND h.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
                AND h.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                AND h.relation IN ('pgwh.subscriptions'::regclass, 'pgwh.secrets'::regclass, 'pgwh_internal.commands'::regclass, 'pgwh.replays'::regclass,
                    'pgwh_internal.backfill_requests'::regclass, 'pgwh.gaps'::regclass)
            UNION ALL
            -- and rows: of one that is locked by several only the table is known.
            SELECT 'that a subscription is disabled is written when its row can be locked', h.holder,
                CASE WHEN h.locktype = 'transactionid' THEN 3 ELSE 4 END
            FROM pgwh_internal.commands c JOIN pgwh.subscriptions s ON s.id = c.subscription_id
                JOIN lock h ON h.granted AND (h.locktype = 'transactionid' AND h.mode = 'ExclusiveLock' AND h.transactionid = s.xmax
                    OR h.locktype = 'relation' AND h.relation = 'pgwh.subscriptions'::regclass AND h.mode IN ('RowShareLock', 'RowExclusiveLock')
                        AND EXISTS (SELECT FROM lock x WHERE x.locktype = 'transactionid' AND x.holder = h.holder))
            WHERE c.command = 'disable' AND s.enabled AND s.id = coalesce(lock_holders.subscription_id, s.id)
        )
        SELECT DISTINCT ON (w.rank, w.waiting, a.pid, p.gid) w.rank = 1, w.waiting,
            CASE WHEN a.pid IS NOT NULL THEN format('process %s (%s, %s)', a.pid, a.usename, a.state)
                ELSE format('prepared transaction %L (COMMIT PREPARED ends it, too)', p.gid) END,
            CASE WHEN a.pid IS NOT NULL THEN format('SELECT pg_terminate_backend(%s);', a.pid)
                ELSE format('ROLLBACK PREPARED %L;', p.gid) END
        FROM awaited w JOIN lock v ON v.holder = w.holder
            LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = v.pid
            LEFT JOIN pg_catalog.pg_prepared_xacts p ON v.pid IS NULL AND v.locktype = 'transactionid' AND p.transaction = v.transactionid
        WHERE (a.pid IS NOT NULL OR p.gid IS NOT NULL) AND a.pid IS DISTINCT FROM pg_backend_pid()
            AND NOT starts_with(coalesce(a.backend_type, ''), 'pgstream_hooks ')
        ORDER BY w.rank, w.waiting, a.pid, p.gid;
    END;
COMMENT ON FUNCTION pgwh_internal.lock_holders(bigint) IS 'what the workers of this database put off or, where nothing is sent meanwhile (stops), wait for, since another session holds a lock: who that is, and how to end it; of one subscription, or of all';

CREATE FUNCTION pgwh_internal.wrong_lines() RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        -- The texts of pg_file_settings are in the language of the session. A line that is no setting has no name; it, and a
        -- line without a prefix whose name nobody knows, keep all lines from being applied.
        SELECT string_agg(CASE
                WHEN c.name IS NULL THEN format('%s, so that no change of the files is in effect', c.error)
                WHEN c.error IS NULL THEN format('settings of pgstream_hooks begin with pgwh., and not as %s', c.name)
                -- Its value may hold a password.
                WHEN lower(c.name) = 'pgwh.proxy' THEN format('%s is no http://[user:password@]host:port', c.name)
                WHEN s.name IS NULL AND c.name NOT LIKE '%.%' THEN format('there is no setting %s, so that no change of the files is in effect', c.name)
                WHEN s.name IS NULL THEN format('there is no setting %s', c.name)
                WHEN s.context = 'postmaster' THEN format('%s is in effect when the server has been restarted', c.name)
                ELSE format('%s cannot be %L', c.name, c.setting) END
            || format(' (line %s of %s)', c.sourceline, regexp_replace(c.sourcefile, '.*/', '')), ', ' ORDER BY c.seqno)
        FROM pg_catalog.pg_file_settings c LEFT JOIN pg_catalog.pg_settings s ON s.name = lower(c.name)
        WHERE c.error IS NOT NULL AND (c.name IS NULL OR lower(c.name) LIKE 'pgwh.%' OR s.name IS NULL AND c.name NOT LIKE '%.%')
            OR c.applied AND split_part(lower(c.name), '.', 1) IN ('pgstream_hooks', 'pgstream');
    END;
COMMENT ON FUNCTION pgwh_internal.wrong_lines() IS 'lines of the configuration files that keep settings pgwh.* from being in effect: wrong values, unknown names, and what is no setting; null when there are none';

CREATE FUNCTION pgwh_internal.file_problems(OUT problem text, OUT cure text) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 2 AS 'MODULE_PATHNAME', 'file_problems_wrapper';
COMMENT ON FUNCTION pgwh_internal.file_problems() IS 'settings pgwh.* that name a file which cannot be used, why, and what to do; none when all can';

CREATE FUNCTION pgwh_internal.owner_rights(OUT owner name, OUT sees_sessions boolean, OUT sees_files boolean) RETURNS record
    LANGUAGE sql STABLE
    BEGIN ATOMIC
        SELECT r.rolname, pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE'),
            has_table_privilege(r.oid, 'pg_catalog.pg_file_settings', 'SELECT')
                AND has_function_privilege(r.oid, 'pg_catalog.pg_show_all_file_settings()', 'EXECUTE')
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles r ON r.oid = c.relowner WHERE c.oid = 'pgwh.secrets'::regclass;
    END;
COMMENT ON FUNCTION pgwh_internal.owner_rights() IS 'who owns the extension''s functions, and whether that role may look at all sessions and at the lines of the configuration files, as checks of pgwh.health() do on its behalf';

-- Where the owner is no superuser any more, the lines are not looked at.
CREATE FUNCTION pgwh_internal.wrong_settings() RETURNS text
    LANGUAGE sql VOLATILE
    BEGIN ATOMIC
        SELECT CASE WHEN o.sees_files THEN pgwh_internal.wrong_lines() END FROM pgwh_internal.owner_rights() o;
    END;
COMMENT ON FUNCTION pgwh_internal.wrong_settings() IS 'settings pgwh.* of the configuration files that cannot be in effect; null when there are none';

CREATE FUNCTION pgwh_internal.capture_health(OUT check_name text, OUT ok boolean, OUT detail text, OUT hint text) RETURNS SETOF record
    LANGUAGE sql VOLATILE
    BEGIN ATOMIC
        WITH processes AS MATERIALIZED (
            SELECT w.type, w.pid FROM pgwh_internal.worker_processes() w
        ), workers AS MATERIALIZED (
            SELECT pgwh_internal.workers_in_use() AS used, current_setting('max_worker_processes')::integer AS most
        ), version AS MATERIALIZED (
            SELECT e.extversion, i.schema_version, pgwh.version() AS library,
                CASE WHEN e.extversion = pgwh.version() THEN NULL
                    WHEN string_to_array(split_part(e.extversion, '-', 1), '.')::bigint[] > string_to_array(split_part(pgwh.version(), '-', 1), '.')::bigint[]
                    THEN format('Install the library %s if it is not, and restart the server', e.extversion)
                    ELSE 'ALTER EXTENSION pgstream_hooks UPDATE;' END AS fitting
            FROM pgwh_internal.installation i, pg_catalog.pg_extension e WHERE e.extname = 'pgstream_hooks'
        ), slot AS MATERIALIZED (
            SELECT s.*, CASE WHEN s.slot_name IS NULL THEN 'missing'
                WHEN s.wal_status = 'lost' THEN 'invalid'
                WHEN pg_is_in_recovery() AND s.temporary THEN 'being synchronized'
                WHEN pg_is_in_recovery() AND NOT coalesce((to_jsonb(s) ->> 'synced')::boolean, true) THEN 'not synchronized'
                WHEN s.confirmed_flush_lsn IS NULL OR pgwh_internal.slot_is_ephemeral(s.slot_name) THEN 'being created' ELSE 'valid' END AS state,
                pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                    ELSE pg_current_wal_lsn() END, s.restart_lsn) AS retained,
                -- Since PostgreSQL 19: why the last synchronization to this standby was skipped.
                CASE WHEN pg_is_in_recovery() THEN nullif(to_jsonb(s) ->> 'slotsync_skip_reason', 'none') END AS skip_reason
            FROM (SELECT pgwh.slot_name() AS wanted) n
            LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = n.wanted
        ), wal AS MATERIALIZED (
            -- Since PostgreSQL 19, logical decoding is switched on by the first logical slot and off by the last one.
            SELECT CASE WHEN l.effective IS NULL THEN l.level = 'logical' ELSE l.level <> 'minimal' END AS suffices,
                CASE WHEN l.effective IS NULL THEN 'logical' ELSE 'replica' END AS required,
                'wal_level is ' || l.level || coalesce(', effective_wal_level is ' || l.effective, '') AS detail
            FROM (SELECT current_setting('wal_level'), current_setting('effective_wal_level', true)) l (level, effective)
        ), keeper AS MATERIALIZED (
            SELECT o.who, o.next_step AS cure FROM slot s
            CROSS JOIN LATERAL (SELECT pgwh_internal.transaction_keeping_wal(pg_wal_lsn_diff(s.restart_lsn, '0/0')::bigint) AS xid) t
            CROSS JOIN LATERAL pgwh.oldest_transaction(t.xid) o
            WHERE t.xid IS NOT NULL AND (s.wal_status <> 'reserved' OR s.retained > 64 * 1024 * 1024)
        ), blocker AS MATERIALIZED (
            -- A slot is consistent when every transaction that runs now has ended.
            SELECT b.who, b.next_step AS cure FROM pgwh.oldest_transaction() b
        )
        SELECT 'preloaded', pgwh_internal.preloaded(),
            CASE WHEN pgwh_internal.preloaded() THEN 'loaded at server start' ELSE 'loaded by this session only' END,
            -- What is preloaded already stays; not everybody may know what that is.
            CASE WHEN NOT pgwh_internal.preloaded() THEN format('ALTER SYSTEM SET shared_preload_libraries = %s''pgstream_hooks''; and restart the server',
                CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') AND current_setting('shared_preload_libraries') <> ''
                    THEN '''' || regexp_replace(replace(current_setting('shared_preload_libraries'), '"', ''), ' *, *', ''', ''', 'g') || ''', ' END) END
        UNION ALL
        SELECT 'wal_level', l.suffices, l.detail,
            CASE WHEN NOT l.suffices THEN format('ALTER SYSTEM SET wal_level = %s; and restart the server', l.required) END
        FROM wal l
        UNION ALL
        SELECT 'worker running', pg_is_in_recovery() OR bool_and(p.pid IS NOT NULL) AND min(f.problem) IS NULL,
            CASE WHEN pg_is_in_recovery() THEN 'this server is a standby: they rest until it is promoted'
            ELSE string_agg(p.type || coalesce(' has process id ' || p.pid, ' is not running'), ', ')
                || format('; %s of %s worker processes in use', min(w.used), min(w.most))
                || coalesce('; ' || min(f.problem), '') END,
            CASE WHEN pg_is_in_recovery() OR bool_and(p.pid IS NOT NULL) AND min(f.problem) IS NULL THEN NULL
                WHEN min(v.fitting) IS NOT NULL THEN min(v.fitting)
                WHEN NOT pgwh_internal.preloaded() THEN 'The launcher starts with the server: see check preloaded'
                WHEN NOT current_setting('pgwh.enabled')::boolean THEN 'They rest while pgwh.enabled is off: see check settings valid'
                WHEN NOT bool_and(l.suffices) THEN 'See check wal_level'
                WHEN min(f.problem) LIKE 'they gave way %' THEN 'They start again for whoever subscribes here. To send from this copy: SELECT pgwh.adopt();'
                WHEN NOT bool_and(p.pid IS NOT NULL) AND min(w.used) >= min(w.most) - 1 THEN format('ALTER SYSTEM SET max_worker_processes = %s; and restart the server', min(w.most) + 8)
                WHEN min(f.problem) IS NOT NULL THEN 'They are started again after at most 30 s; the server''s log says more'
                ELSE 'They are started again within seconds; if they are not, the server''s log says why' END
        FROM processes p, workers w, version v, wal l, (SELECT pgwh_internal.capture_problem()) f (problem)
        UNION ALL
        SELECT 'slot present and valid', s.state = 'valid' OR pg_is_in_recovery() AND s.state = 'missing' AND current_setting('sync_replication_slots', true) IS NULL,
            format('slot %s is %s; %s of %s slots in use', pgwh.slot_name(), s.state, u.used, current_setting('max_replication_slots'))
                || CASE WHEN s.state = 'being created' THEN coalesce('; waiting for ' || (SELECT b.who FROM blocker b), '') ELSE '' END
                || coalesce('; its last synchronization was skipped: ' || s.skip_reason, ''),
            CASE s.state WHEN 'valid' THEN NULL
                WHEN 'not synchronized' THEN format('It is of the time when this server was the primary, and keeps the present one''s from coming: SELECT pg_drop_replication_slot(%L);', pgwh.slot_name())
                WHEN 'being synchronized' THEN CASE s.skip_reason
                    WHEN 'wal_or_rows_removed' THEN 'This standby has removed WAL or catalog rows that the slot needs. It will be ready when the primary''s slot has advanced; to keep them from now on: ALTER SYSTEM SET hot_standby_feedback = on, and primary_slot_name'
                    WHEN 'wal_not_flushed' THEN 'This standby has not received the WAL up to the slot''s position yet: see pg_stat_wal_receiver'
                    WHEN 'no_consistent_snapshot' THEN 'It waits for a snapshot without running transactions. On the primary: SELECT pg_log_standby_snapshot();'
                    WHEN 'slot_invalidated' THEN 'This standby has invalidated its copy of the slot, and makes another at the next synchronization'
                    ELSE 'It will be ready when the primary''s slot has advanced; pg_replication_slots and the server''s log say more' END
                WHEN 'invalid' THEN 'The server gave the slot up; it is made again by itself, and what was not delivered by then is a gap'
                WHEN 'being created' THEN coalesce('Creation ends when that transaction does: ' || (SELECT b.cure FROM blocker b), 'It will be ready in a moment')
                ELSE CASE WHEN pg_is_in_recovery() THEN CASE WHEN current_setting('sync_replication_slots', true) IS NOT NULL
                        THEN 'Without it a promotion of this server is a gap. To have it here: ALTER SYSTEM SET sync_replication_slots = on, and hot_standby_feedback, primary_slot_name and dbname in primary_conninfo' END
                    WHEN u.used >= current_setting('max_replication_slots')::integer
                    THEN format('ALTER SYSTEM SET max_replication_slots = %s; and restart the server', u.used + 8)
                    WHEN NOT l.suffices THEN 'See check wal_level'
                    ELSE 'The decoder makes it when it starts: see check worker running' END END
        FROM slot s, wal l, (SELECT count(*) AS used FROM pg_catalog.pg_replication_slots) u
        UNION ALL
        SELECT 'slot plugin', coalesce(s.plugin = 'pgstream_hooks' AND s.database = current_database(), true),
            coalesce('plugin is ' || s.plugin || CASE WHEN s.database <> current_database()
                THEN format(', database is %s', s.database) ELSE '' END, 'there is no slot yet'),
            CASE WHEN s.database <> current_database()
                THEN format('A slot of that name is of another database: ALTER DATABASE %I SET pgwh.slot_name = ''another_name'';', current_database())
                WHEN s.plugin <> 'pgstream_hooks' THEN format('Another program made a slot of our name: SELECT pg_drop_replication_slot(%L);', s.slot_name) END
        FROM slot s
        UNION ALL
        SELECT 'retained WAL', coalesce(s.wal_status, 'reserved') = 'reserved',
            coalesce('the slot keeps ' || pg_size_pretty(s.retained) || ' of WAL', 'the slot keeps no WAL')
                || coalesce((SELECT ', all since ' || k.who || ' began, since that may still commit' FROM keeper k), ''),
            CASE WHEN s.wal_status <> 'reserved' THEN coalesce((SELECT 'It is kept until that transaction ends: ' || k.cure FROM keeper k),
                'More than max_wal_size waits to be decoded: see check worker running, and the server''s log') END
        FROM slot s
        UNION ALL
        SELECT 'locks', count(*) = 0,
            coalesce(string_agg(format('%s that %s has', l.waiting, l.who), '; '), 'no worker waits for a lock'),
            string_agg(DISTINCT l.cure, ' ')
        FROM pgwh_internal.lock_holders() l WHERE l.stops
        UNION ALL
        SELECT 'schema version', v.fitting IS NULL AND v.extversion = v.schema_version,
            format('extension %s, schema %s, library %s', v.extversion, v.schema_version, v.library),
            coalesce(v.fitting, CASE WHEN v.extversion <> v.schema_version THEN 'The row of pgwh_internal.installation was changed by hand' END)
        FROM version v;
    END;
COMMENT ON FUNCTION pgwh_internal.capture_health() IS 'the checks of pgwh.health() that all subscriptions stand or fall with';

CREATE FUNCTION pgwh_internal.publication_problems(OUT publication name, OUT problem text, OUT next_step text) RETURNS SETOF record
    LANGUAGE sql STABLE
    BEGIN ATOMIC
        SELECT p.pubname,
            format(CASE WHEN p.puballtables THEN 'publication %I is of all tables, so also of those of pgstream_hooks'
                ELSE 'publication %I has tables of pgstream_hooks' END, p.pubname),
            CASE WHEN p.puballtables
                -- Its options, owner and comment go with it; tables may come to any schema.
                THEN format('BEGIN; DROP PUBLICATION %1$I; CREATE PUBLICATION %1$I%2$s%3$s;%4$s%5$s COMMIT; then on each subscriber: ALTER SUBSCRIPTION ... REFRESH PUBLICATION;',
                    p.pubname,
                    (SELECT ' FOR TABLES IN SCHEMA ' || string_agg(quote_ident(n.nspname), ', ' ORDER BY n.nspname)
                        FROM pg_catalog.pg_namespace n
                        WHERE n.nspname NOT IN ('pgwh', 'pgwh_internal', 'information_schema') AND n.nspname !~ '^pg_'),
                    (SELECT format(' WITH (%s)', string_agg(o.option, ', ' ORDER BY o.place)) FROM (VALUES
                        (1, CASE WHEN NOT (p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate) THEN format('publish = %L', concat_ws(', ',
                            CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
                            CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END)) END),
                        (2, CASE WHEN p.pubviaroot THEN 'publish_via_partition_root = true' END),
                        (3, CASE WHEN to_jsonb(p) ->> 'pubgencols' = 's' THEN 'publish_generated_columns = stored' END)) o (place, option)
                        WHERE o.option IS NOT NULL HAVING count(*) > 0),
                    -- FOR TABLES IN SCHEMA has superusers as owners only.
                    (SELECT format(' ALTER PUBLICATION %I OWNER TO %I;', p.pubname, r.rolname) FROM pg_catalog.pg_roles r
                        WHERE r.oid = p.pubowner AND r.rolsuper AND r.rolname <> coalesce(nullif(current_setting('role'), 'none'), session_user)),
                    (SELECT format(' COMMENT ON PUBLICATION %I IS %L;', p.pubname, d.description) FROM pg_catalog.pg_description d
                        WHERE d.objoid = p.oid AND d.classoid = 'pg_publication'::regclass))
                -- A schema of ours, single tables of ours, or both.
                ELSE concat_ws(' ',
                    (SELECT format('ALTER PUBLICATION %I DROP TABLES IN SCHEMA %s;', p.pubname, string_agg(quote_ident(s.nspname), ', ' ORDER BY s.nspname))
                        FROM pg_catalog.pg_publication_namespace n JOIN pg_catalog.pg_namespace s ON s.oid = n.pnnspid
                        WHERE n.pnpubid = p.oid AND s.nspname IN ('pgwh', 'pgwh_internal') HAVING count(*) > 0),
                    (SELECT format('ALTER PUBLICATION %I DROP TABLE %s;', p.pubname, string_agg(r.prrelid::regclass::text, ', ' ORDER BY r.prrelid::regclass::text))
                        FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
                            JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
                        WHERE r.prpubid = p.oid AND s.nspname IN ('pgwh', 'pgwh_internal') HAVING count(*) > 0)) END
        FROM pg_catalog.pg_publication p
        WHERE current_setting('pgwh.allow_all_tables_publications', true) IS DISTINCT FROM 'on'
            AND (p.pubinsert OR p.pubupdate OR p.pubdelete OR p.pubtruncate)
            AND EXISTS (SELECT FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname AND t.schemaname IN ('pgwh', 'pgwh_internal'))
        ORDER BY p.pubname;
    END;
COMMENT ON FUNCTION pgwh_internal.publication_problems() IS 'publications that have tables of the extension, which stop replication to subscribers without the extension, and what to type; none when pgwh.allow_all_tables_publications is on';

CREATE FUNCTION pgwh_internal.failing_logical_subscriptions(OUT name text, OUT problem text) RETURNS SETOF record
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        -- Columns of statistics have other names from version to version.
        SELECT f.name, f.problem FROM (
            SELECT s.subname::text AS name, CASE
                WHEN NOT s.subenabled THEN CASE WHEN s.subdisableonerr AND e.apply + e.sync > 0 THEN 'an error has disabled it' END
                WHEN w.workers = 0 THEN 'it is enabled, and no worker applies its changes'
                WHEN e.apply > 0 AND w.since > clock_timestamp() - interval '1 minute' THEN 'its worker fails again and again'
                WHEN e.sync > 0 AND r.unready > 0 THEN format('%s of its tables cannot be copied', r.unready)
                END || CASE WHEN e.apply + e.sync > 0 THEN format(' (%s errors when applying, %s when copying tables)', e.apply, e.sync) ELSE '' END AS problem
            FROM pg_subscription s
                CROSS JOIN LATERAL (SELECT coalesce(sum((to_jsonb(t) ->> 'apply_error_count')::bigint), 0) AS apply,
                        coalesce(sum(coalesce(to_jsonb(t) ->> 'sync_error_count', to_jsonb(t) ->> 'sync_table_error_count')::bigint), 0) AS sync
                    FROM pg_stat_subscription_stats t WHERE t.subid = s.oid) e
                CROSS JOIN LATERAL (SELECT max(a.backend_start) AS since, count(w.pid) AS workers
                    FROM pg_stat_subscription w LEFT JOIN pg_stat_activity a ON a.pid = w.pid WHERE w.subid = s.oid AND w.relid IS NULL) w
                CROSS JOIN LATERAL (SELECT count(*) AS unready FROM pg_subscription_rel r
                    WHERE r.srsubid = s.oid AND r.srsubstate NOT IN ('r', 's')) r
            WHERE s.subdbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) AND NOT pg_is_in_recovery()) f
        WHERE f.problem IS NOT NULL;
    END;
COMMENT ON FUNCTION pgwh_internal.failing_logical_subscriptions() IS 'subscriptions of this database to publications (CREATE SUBSCRIPTION) that bring no changes, and why';

CREATE FUNCTION pgwh.health(OUT check_name text, OUT ok boolean, OUT detail text, OUT hint text) RETURNS SETOF record
    LANGUAGE sql VOLATILE
    BEGIN ATOMIC
        WITH subscription AS MATERIALIZED (
            SELECT s.name, s.home <> h.home AS held, s.home <> h.home AND pgwh_internal.is_earlier_home(s.home) AS is_earlier,
                CASE WHEN s.enabled THEN (a.address).cure END AS cure,
                CASE WHEN s.enabled THEN coalesce((a.address).problem, CASE WHEN (t.absent).fails THEN (t.absent).problem END, u.problem,
                    CASE WHEN (c.misfit).stops THEN (c.misfit).problem END, CASE WHEN (p.parts).stops THEN (p.parts).problem END,
                    (pgwh_internal.permission_problem(s.owner, s.tables, s.event_types, s.filter, s.changed,
                        s.columns, s.exclude_columns, s.key_columns)).problem) END AS problem,
                CASE WHEN s.enabled THEN nullif(concat_ws('; ', CASE WHEN NOT (t.absent).fails THEN (t.absent).problem END,
                    CASE WHEN NOT (c.misfit).stops THEN (c.misfit).problem END,
                    CASE WHEN NOT (p.parts).stops THEN (p.parts).problem END), '') END AS note, s.updated_at
            FROM pgwh.subscriptions s CROSS JOIN (SELECT pgwh_internal.home() AS home OFFSET 0) h
                LEFT JOIN pgwh_internal.secret_problems() u ON u.subscription_id = s.id
                CROSS JOIN LATERAL (SELECT pgwh_internal.url_problem(s.url) AS address OFFSET 0) a
                CROSS JOIN LATERAL (SELECT pgwh_internal.tables_problem(s.tables) AS absent OFFSET 0) t
                CROSS JOIN LATERAL (SELECT pgwh_internal.condition_problem(s.tables, s.event_types, s.filter, s.changed, s.key_columns) AS misfit OFFSET 0) c
                CROSS JOIN LATERAL (SELECT pgwh_internal.parts_problem(s.tables, s.event_types) AS parts OFFSET 0) p
        ), endpoint AS MATERIALIZED (
            SELECT s.name, (t.stats).last_success_at, (t.stats).last_failure_at, (t.stats).last_error
            FROM pgwh.subscriptions s, LATERAL (SELECT pgwh_internal.delivery_stats(s.id) AS stats OFFSET 0) t WHERE s.enabled
        )
        SELECT c.* FROM pgwh_internal.capture_health() c
        UNION ALL
        SELECT 'deferred work', count(*) = 0,
            coalesce(string_agg(format('%s, which %s holds', d.waiting, d.who), '; '), 'nothing is put off'),
            string_agg(DISTINCT d.cure, ' ')
        FROM pgwh_internal.lock_holders() d WHERE NOT d.stops
        UNION ALL
        SELECT 'standbys', NOT coalesce(bool_or(w.problem IS NOT NULL), false),
            coalesce(string_agg(format('slot %s, which synchronized_standby_slots names, %s', w.name, w.problem), '; '),
                'decoding waits for none'),
            CASE WHEN bool_or(w.problem IS NOT NULL) THEN 'Nothing is sent until they have it. Bring the standby back, or take it out of synchronized_standby_slots and SELECT pg_reload_conf();' END
        FROM (
            SELECT n.name, CASE WHEN s.slot_name IS NULL THEN 'does not exist'
                WHEN s.wal_status = 'lost' THEN 'was given up by the server'
                WHEN NOT s.active THEN 'has nobody connected to it' END AS problem
            FROM (SELECT btrim(n, ' "') AS name FROM string_to_table(current_setting('synchronized_standby_slots', true), ',') n WHERE n <> '') n
            LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = n.name
            WHERE NOT pg_is_in_recovery()
        ) w WHERE w.problem IS NOT NULL
        UNION ALL
        SELECT 'gaps', count(*) = 0,
            coalesce(string_agg(format('%s misses %s committed from %s %s: %s', l.name, coalesce('changes of ' || l.table_name, 'what was'),
                l.from_lsn, coalesce('to ' || l.to_lsn, 'on'), l.reason), '; ' ORDER BY l.name, l.from_lsn, l.id), 'no changes were lost'),
            string_agg(DISTINCT l.next_step, ' ')
        FROM (SELECT s.name, u.* FROM pgwh_internal.unclosed_gaps() u JOIN pgwh.subscriptions s ON s.id = u.subscription_id) l
        UNION ALL
        SELECT 'free worker processes', NOT (l.renderer OR l.backfiller OR l.memory IS NOT NULL),
            coalesce(nullif(concat_ws('; ', CASE WHEN l.renderer THEN 'there is none to run transforms and routes, so that nothing is sent to subscriptions that have one' END,
                CASE WHEN l.backfiller THEN 'there is none to read backfills' END, 'shared memory is full: ' || l.memory), ''),
                'no transform, route or backfill waits for one'),
            CASE WHEN l.renderer OR l.backfiller THEN format('ALTER SYSTEM SET max_worker_processes = %s; and restart the server', current_setting('max_worker_processes')::integer + 8)
                WHEN l.memory IS NOT NULL THEN 'Make /dev/shm larger, in a container by --shm-size' END
        FROM (SELECT pgwh_internal.lacks_renderer(), pgwh_internal.lacks_backfiller(), pgwh_internal.memory_problem()) l (renderer, backfiller, memory)
        UNION ALL
        SELECT 'logical subscriptions', count(*) = 0,
            coalesce(string_agg(format('%s: %s', f.name, f.problem), '; ' ORDER BY f.name), 'none of this database fails'),
            CASE WHEN count(*) > 0 THEN 'Changes of its publisher do not come here, so nothing is sent of them. The server''s log says why. To end the attempts until that is fixed: '
                || string_agg(format('ALTER SUBSCRIPTION %I DISABLE;', f.name), ' ' ORDER BY f.name) END
        FROM pgwh_internal.failing_logical_subscriptions() f
        UNION ALL
        SELECT 'notices', n.problem IS NULL, coalesce(n.problem, 'NOTIFY pgwh and system events are sent'),
            CASE WHEN n.problem IS NOT NULL THEN 'A listening session in an open transaction keeps the queue of NOTIFY from being emptied: SELECT pg_notification_queue_usage(); SELECT pid, xact_start, query FROM pg_stat_activity WHERE state LIKE ''idle in transaction%'' ORDER BY xact_start;' END
        FROM (SELECT pgwh_internal.notice_problem()) n (problem)
        UNION ALL
        SELECT 'owner', o.sees_sessions AND o.sees_files,
            CASE WHEN o.sees_sessions AND o.sees_files THEN format('the extension belongs to %s', o.owner)
                ELSE format('the extension belongs to %s, which is no superuser any more: all goes on, but checks see neither %s', o.owner,
                    concat_ws(' nor ', CASE WHEN NOT o.sees_sessions THEN 'transactions that are in the way' END,
                        CASE WHEN NOT o.sees_files THEN 'wrong lines of the configuration files' END)) END,
            CASE WHEN NOT (o.sees_sessions AND o.sees_files) THEN format('ALTER ROLE %1$I SUPERUSER; or GRANT pg_read_all_stats TO %1$I; GRANT SELECT ON pg_file_settings TO %1$I; GRANT EXECUTE ON FUNCTION pg_show_all_file_settings() TO %1$I;', o.owner) END
        FROM pgwh_internal.owner_rights() o
        UNION ALL
        SELECT 'publications', count(*) = 0,
            coalesce(string_agg(u.problem, '; '), 'no publication stops replication to subscribers without the extension'),
            string_agg(u.next_step, ' ') || ' Or, if all readers pick their tables themselves or have the extension: ALTER SYSTEM SET pgwh.allow_all_tables_publications = on; SELECT pg_reload_conf();'
        FROM pgwh_internal.publication_problems() u
        UNION ALL
        SELECT 'settings valid', current_setting('pgwh.enabled')::boolean AND f.wrong IS NULL AND f.unusable IS NULL,
            coalesce(nullif(concat_ws('; ', f.wrong, f.unusable, CASE WHEN NOT current_setting('pgwh.enabled')::boolean
                THEN 'pgwh.enabled is off: nothing is captured or sent' END), ''), 'all settings pgwh.* are in effect'),
            nullif(concat_ws(' ', CASE WHEN f.wrong IS NOT NULL THEN 'Correct these lines, then SELECT pg_reload_conf(); The settings that there are: SELECT name, setting FROM pg_settings WHERE name LIKE ''pgwh.%'';' END,
                f.cure, CASE WHEN NOT current_setting('pgwh.enabled')::boolean THEN 'ALTER SYSTEM SET pgwh.enabled = on; SELECT pg_reload_conf();' END), '')
        FROM (SELECT pgwh_internal.wrong_settings() AS wrong, string_agg(p.problem, '; ') AS unusable, string_agg(DISTINCT p.cure, ' ') AS cure
            FROM pgwh_internal.file_problems() p) f
        UNION ALL
        SELECT 'certificates', count(*) = 0, coalesce(string_agg(e.problem, '; ' ORDER BY e.name NULLS FIRST), 'none ends within 14 days'),
            string_agg(DISTINCT e.cure, ' ')
        FROM (
            SELECT s.name, format('%s: its client certificate %s', s.name, e.ends) AS problem,
                format('UPDATE pgwh.secrets SET client_certificate = ''new certificate and key in PEM'' WHERE subscription_id = %s; as a superuser, or give it to pgwh.subscribe as client_certificate.', s.id) AS cure
            FROM (SELECT c.subscription_id, format(CASE WHEN c.until::timestamptz > clock_timestamp() THEN 'ends on %s' ELSE 'has expired on %s' END,
                    c.until::timestamptz) AS ends FROM pgwh_internal.certificate_ends() c
                WHERE c.subscription_id IS NOT NULL AND c.until::timestamptz < clock_timestamp() + interval '14 days') e
                JOIN pgwh.subscriptions s ON s.id = e.subscription_id WHERE s.enabled
            UNION ALL
            SELECT NULL, format('%s of %s certificates in pgwh.ca_file have expired or end within 14 days, the first on %s',
                    count(*) FILTER (WHERE c.until::timestamptz < clock_timestamp() + interval '14 days'), count(*), min(c.until::timestamptz)),
                'Put new certificates into the file that pgwh.ca_file names, then SELECT pg_reload_conf();'
            FROM pgwh_internal.certificate_ends() c WHERE c.subscription_id IS NULL
            HAVING min(c.until::timestamptz) < clock_timestamp() + interval '14 days'
        ) e
        UNION ALL
        SELECT 'copy detection', d.ok, d.detail, d.hint FROM pgwh_internal.copy_detection() d
        UNION ALL
        SELECT 'subscriptions valid', NOT coalesce(bool_or(s.held OR s.problem IS NOT NULL), false),
            coalesce(string_agg(format('%s: %s', s.name, CASE WHEN s.is_earlier THEN 'held, made before the extension was dropped and created again'
                WHEN s.held THEN 'held, made or armed elsewhere' ELSE s.problem END), '; ' ORDER BY s.name)
                FILTER (WHERE s.held OR s.problem IS NOT NULL), format('%s subscriptions', count(*)))
                || coalesce('; ' || array_to_string((array_agg(format('%s: %s', s.name, s.note) ORDER BY s.name)
                    FILTER (WHERE s.note IS NOT NULL))[:10], '; '), '')
                || CASE WHEN count(s.note) > 10 THEN format('; and %s subscriptions more', count(s.note) - 10) ELSE '' END,
            CASE WHEN bool_or(s.held OR s.problem IS NOT NULL)
                THEN concat_ws(' ', string_agg(DISTINCT s.cure, ' '), 'SELECT name, state, reason, next_step FROM pgwh.status();') END
        FROM subscription s
        UNION ALL
        SELECT 'dead letters', count(*) = 0,
            coalesce(string_agg(format('%s: %s events were given up', d.name, d.dead), '; ' ORDER BY d.name), 'no event was given up'),
            CASE WHEN count(*) > 0 THEN 'SELECT id, subscription, event_id, reason FROM pgwh.dead_letters; When the cause is fixed, send them again: SELECT pgwh.redeliver(id) FROM pgwh.dead_letters;' END
        FROM (SELECT s.name, u.dead FROM pgwh_internal.dead_letter_counts() u JOIN pgwh.subscriptions s ON s.id = u.subscription_id WHERE u.dead > 0) d
        UNION ALL
        SELECT 'endpoints reachable lately', NOT coalesce(bool_or(e.last_failure_at > coalesce(e.last_success_at, '-infinity')), false),
            coalesce(string_agg(format('%s: %s', e.name, e.last_error), '; ' ORDER BY e.name)
                FILTER (WHERE e.last_failure_at > coalesce(e.last_success_at, '-infinity')), 'no endpoint failed its last request'),
            CASE WHEN bool_or(e.last_failure_at > coalesce(e.last_success_at, '-infinity')) THEN concat_ws(' ',
                string_agg(DISTINCT pgwh_internal.cure_in(e.last_error), ' ') FILTER (WHERE e.last_failure_at > coalesce(e.last_success_at, '-infinity')),
                'SELECT name, last_status, last_error, next_attempt_at FROM pgwh.status();') END
        FROM endpoint e
        UNION ALL
        SELECT 'clock', c.latest <= clock_timestamp(), format('it is %s', clock_timestamp()),
            CASE WHEN c.latest > clock_timestamp() THEN format('The server''s clock has gone back, it has already been %s: receivers refuse signatures that are off by minutes', c.latest) END
        FROM (SELECT greatest(pg_postmaster_start_time(), (SELECT max(s.updated_at) FROM subscription s),
            (SELECT max(e.last_success_at) FROM endpoint e)) AS latest) c;
    END;
COMMENT ON FUNCTION pgwh.health() IS 'one row a check: whether it is well, what was found, and what to type';

CREATE VIEW pgwh.status AS
    WITH broken AS MATERIALIZED (
        SELECT h.detail, h.hint FROM pgwh_internal.capture_health() h
        WHERE NOT h.ok AND h.check_name IN ('preloaded', 'wal_level', 'worker running', 'slot present and valid', 'slot plugin', 'locks')
        LIMIT 1
    ), here AS MATERIALIZED (
        SELECT pgwh_internal.home() AS home, pgwh_internal.installed() AS installed, current_setting('pgwh.enabled')::boolean AS enabled,
            pgwh_internal.lacks_renderer() AS lacks_renderer, current_setting('max_worker_processes')::integer AS workers,
            (SELECT m.problem FROM (SELECT pgwh_internal.memory_problem()) m (problem) WHERE m.problem LIKE '%to run transforms and routes:%') AS memory_problem,
            pg_is_in_recovery() AS is_standby, CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn,
            clock_timestamp() AS now
    ), stopped AS MATERIALIZED (
        SELECT c.subscription_id, c.reason, c.url FROM pgwh_internal.commands c WHERE c.command = 'disable'
    ), given_up AS MATERIALIZED (
        SELECT d.subscription_id, d.dead, d.skipped FROM pgwh_internal.dead_letter_counts() d
    ),
    -- What takes long is asked here, once for each that the caller's conditions leave and not at all if nobody wants it: the
    -- order of its own keeps this step apart, and conditions are asked as soon as what they are about is known.
    asked AS NOT MATERIALIZED (
        SELECT s.*, pgwh_internal.delivery_stats(s.id) AS stats,
            (SELECT d.reason FROM stopped d WHERE d.subscription_id = s.id AND s.enabled AND coalesce(d.url, s.url) = s.url) AS stop_reason,
            -- Most keys are there and in the clear, and most headers no secrets.
            CASE WHEN k.secret IS NULL OR starts_with(k.secret, 'sealed:') OR starts_with(k.client_certificate, 'sealed:')
                OR s.headers <> '{}' THEN pgwh_internal.secret_problem(s.id, s.headers, k.secret, k.headers, k.client_certificate) END AS unsigned,
            pgwh_internal.permission_problem(s.owner, s.tables, s.event_types, s.filter, s.changed, s.columns, s.exclude_columns,
                s.key_columns) AS denial,
            pgwh_internal.url_problem(s.url) AS address,
            pgwh_internal.tables_problem(s.tables) AS absent,
            pgwh_internal.condition_problem(s.tables, s.event_types, s.filter, s.changed, s.key_columns) AS misfit,
            s.has_functions AND (SELECT h.lacks_renderer OR h.memory_problem IS NOT NULL FROM here h) AS unrendered,
            pgwh_internal.parts_problem(s.tables, s.event_types) AS parts
        FROM pgwh_internal.visible_subscriptions s LEFT JOIN pgwh.secrets k ON k.subscription_id = s.id ORDER BY s.id
    ), judged AS NOT MATERIALIZED (
        SELECT a.*, CASE
            WHEN a.home <> (SELECT h.home FROM here h) THEN 'held'
            WHEN NOT a.enabled OR a.stop_reason IS NOT NULL OR NOT (SELECT h.enabled FROM here h) THEN 'disabled'
            WHEN a.paused THEN 'paused'
            -- Without its url, or all of its tables, nothing can be sent; without one of its tables the others still are.
            WHEN (a.address).problem IS NOT NULL OR a.unsigned IS NOT NULL OR (a.denial).stops OR EXISTS (SELECT FROM broken)
                OR a.unrendered OR (a.absent).stops AND NOT EXISTS (
                    SELECT FROM unnest(a.event_types) e (type) WHERE e.type = 'system' OR starts_with(e.type, 'message')) THEN 'error'
            WHEN (a.stats).is_failing THEN 'retrying'
            ELSE 'active' END AS state
        FROM asked a ORDER BY a.id
    )
    SELECT j.id AS subscription_id, j.name, j.url, j.state, CASE WHEN (j.stats).pending IS NOT NULL THEN coalesce((j.stats).mode, 'live') END AS mode,
        CASE j.state
            WHEN 'held' THEN CASE
                WHEN pgwh_internal.is_earlier_home(j.home) THEN 'it was made in this database before the extension was dropped and created again'
                WHEN NOT starts_with(j.home, (SELECT h.installed FROM here h) || '/') THEN 'it was made in another database, of which this one is a copy'
                WHEN (SELECT h.is_standby FROM here h) THEN 'this server is a standby: its primary sends'
                WHEN split_part(j.home, '/', 3) <> split_part((SELECT h.home FROM here h), '/', 3) THEN 'it was armed in another cluster, of which pg_upgrade made this one'
                ELSE 'it was armed elsewhere: this cluster is a copy, or was moved or restored (the data directory, its device, the machine, its host name or the timeline is another one)' END
            WHEN 'disabled' THEN CASE
                WHEN j.stop_reason IS NOT NULL THEN j.stop_reason || coalesce((
                    SELECT format('; that is written as soon as %s ends, which holds a lock on the subscription', w.who)
                    FROM pgwh_internal.lock_holders(j.id) w LIMIT 1), '')
                WHEN j.enabled THEN 'the setting pgwh.enabled is off' ELSE coalesce(j.disabled_reason, 'it is not enabled')
                || coalesce('; ' || CASE WHEN (j.misfit).stops THEN (j.misfit).problem END, '; ' || (j.denial).problem, '') END
            WHEN 'paused' THEN 'it is paused: what is committed is kept for later'
            WHEN 'error' THEN coalesce((j.address).problem, j.unsigned, (SELECT b.detail FROM broken b), CASE WHEN (j.denial).stops THEN (j.denial).problem END,
                CASE WHEN (j.absent).stops THEN (j.absent).problem END,
                (SELECT 'shared memory is full: ' || h.memory_problem FROM here h), 'no worker process is free to run its transform or route')
            WHEN 'retrying' THEN CASE WHEN (j.stats).mode = 'suspended' THEN 'the endpoint fails as a whole and is probed now and then: ' ELSE 'requests fail: ' END || coalesce((j.stats).last_error, 'status ' || (j.stats).last_status)
            ELSE coalesce(CASE WHEN (j.stats).bottleneck = 'endpoint asked to wait'
                    THEN 'the endpoint asked to wait: ' || coalesce((j.stats).last_error, 'status ' || (j.stats).last_status) END,
                CASE WHEN (j.absent).fails THEN (j.absent).problem END, CASE WHEN (j.misfit).stops THEN (j.misfit).problem END,
                CASE WHEN (j.parts).stops THEN (j.parts).problem END, (j.denial).problem,
                CASE WHEN l.reason IS NOT NULL THEN format('it misses %s committed from %s %s: %s',
                    coalesce('changes of ' || (SELECT o.table_name FROM pgwh.open_gaps o WHERE o.id = l.id), 'what was'),
                    l.from_lsn, coalesce('to ' || l.to_lsn, 'on'), l.reason) END,
                (SELECT format('%s events were given up (dead letters)', d.dead + d.skipped) FROM given_up d WHERE d.subscription_id = j.id),
                nullif(concat_ws('; ', (j.absent).problem, (j.misfit).problem, (j.parts).problem), '')) END AS reason,
        CASE j.state
            WHEN 'held' THEN CASE WHEN NOT (SELECT h.is_standby FROM here h) THEN 'SELECT pgwh.adopt();' END
            WHEN 'disabled' THEN CASE WHEN j.stop_reason IS NOT NULL THEN (SELECT w.cure FROM pgwh_internal.lock_holders(j.id) w LIMIT 1)
                WHEN j.enabled THEN 'ALTER SYSTEM SET pgwh.enabled = on; SELECT pg_reload_conf();'
                -- Enabled, it has to pass as a new one does.
                ELSE coalesce((j.misfit).cure, CASE WHEN (j.misfit).change IS NULL THEN (j.denial).cure END,
                    format('UPDATE pgwh.subscriptions SET %senabled = true WHERE name = %L;', (j.misfit).change || ', ', j.name)) END
            WHEN 'paused' THEN format('SELECT pgwh.resume(%L);', j.name)
            WHEN 'error' THEN CASE
                WHEN (j.address).problem IS NOT NULL THEN (j.address).cure
                WHEN j.unsigned LIKE 'its signing key is missing%' THEN format('SELECT pgwh.rotate_secret(%L);', j.name)
                WHEN j.unsigned LIKE '%is missing%' THEN format('UPDATE pgwh.subscriptions SET headers = ''{...}'' WHERE name = %L;', j.name)
                WHEN j.unsigned IS NOT NULL THEN 'ALTER SYSTEM SET pgwh.encryption_key_file = ''...''; SELECT pg_reload_conf();'
                ELSE coalesce((SELECT b.hint FROM broken b), CASE WHEN (j.denial).stops THEN (j.denial).cure END,
                    CASE WHEN (j.absent).stops THEN coalesce((j.absent).cure,
                        format('UPDATE pgwh.subscriptions SET %s WHERE name = %L;', coalesce((j.absent).change, 'tables = ''{...}'''), j.name)) END,
                    (SELECT CASE WHEN h.memory_problem IS NOT NULL THEN 'Make /dev/shm larger, in a container by --shm-size'
                        ELSE format('ALTER SYSTEM SET max_worker_processes = %s; and restart the server', h.workers + 8) END FROM here h)) END
            -- Most who refuse a request so have another signing key.
            WHEN 'retrying' THEN coalesce(pgwh_internal.cure_in((j.stats).last_error),
                CASE WHEN (j.stats).last_status IN (401, 403) THEN format('SELECT pgwh.secret(%L);', j.name) END)
            ELSE CASE WHEN l.relation IS NOT NULL AND l.to_lsn IS NULL THEN (SELECT o.next_step FROM pgwh.open_gaps o WHERE o.id = l.id)
                WHEN (j.absent).fails
                THEN coalesce((j.absent).cure, format('UPDATE pgwh.subscriptions SET %s WHERE name = %L;', coalesce((j.absent).change, 'tables = ''{...}'''), j.name))
                WHEN (j.misfit).stops
                THEN coalesce((j.misfit).cure, format('UPDATE pgwh.subscriptions SET %s WHERE name = %L;', (j.misfit).change, j.name))
                WHEN (j.parts).stops AND coalesce((j.parts).cure, (j.parts).change) IS NOT NULL
                THEN coalesce((j.parts).cure, format('UPDATE pgwh.subscriptions SET %s WHERE name = %L;', (j.parts).change, j.name))
                ELSE coalesce((j.denial).cure, (SELECT o.next_step FROM pgwh.open_gaps o WHERE o.id = l.id),
                    (SELECT format('SELECT id, event_id, attempts, reason FROM pgwh.dead_letters WHERE subscription = %L;', j.name)
                        FROM given_up d WHERE d.subscription_id = j.id),
                    (j.parts).cure) END
            END AS next_step,
        (j.stats).pending,
        (j.stats).retrying,
        (j.stats).in_flight,
        (j.stats).delivered,
        (j.stats).dropped,
        (j.stats).dead,
        (j.stats).blocked_keys,
        CASE WHEN j.unrendered AND (j.stats).pending > 0
            THEN (SELECT CASE WHEN h.memory_problem IS NOT NULL THEN 'shared memory' ELSE 'max_worker_processes' END FROM here h) ELSE (j.stats).bottleneck END AS bottleneck,
        CASE WHEN g.reason IS NOT NULL THEN format('%sfrom %s to %s: %s', g.table_name || ' ', g.from_lsn, coalesce(g.to_lsn::text, 'now'), g.reason) END AS gap,
        (j.stats).oldest_pending,
        CASE WHEN (j.stats).reached IS NOT NULL THEN greatest(pg_wal_lsn_diff((SELECT h.lsn FROM here h), '0/0'::pg_lsn + (j.stats).reached), 0)::bigint END AS lag_bytes,
        CASE WHEN (j.stats).reached IS NOT NULL
            THEN coalesce(extract(epoch FROM (SELECT h.now FROM here h) - (j.stats).oldest_pending), 0)::double precision END AS lag_seconds,
        (j.stats).last_success_at, (j.stats).last_failure_at, (j.stats).last_status, (j.stats).last_error, (j.stats).next_attempt_at, (j.stats).p50_ms, (j.stats).p99_ms
    FROM judged j
        LEFT JOIN pgwh.gaps g ON g.subscription_id = j.id AND g.id = (
            SELECT n.id FROM pgwh.gaps n WHERE n.subscription_id = g.subscription_id ORDER BY n.from_lsn DESC, n.id DESC LIMIT 1)
        LEFT JOIN pgwh.gaps l ON l.subscription_id = j.id AND (l.lost OR l.relation IS NOT NULL) AND l.id = (
            SELECT o.id FROM pgwh.open_gaps o WHERE o.subscription_id = l.subscription_id ORDER BY o.from_lsn DESC, o.id DESC LIMIT 1)
    ORDER BY j.id;
COMMENT ON VIEW pgwh.status IS 'one row a subscription: how it fares, why, and what to type';
COMMENT ON COLUMN pgwh.status.subscription_id IS 'its id';
COMMENT ON COLUMN pgwh.status.name IS 'its name';
COMMENT ON COLUMN pgwh.status.url IS 'where it POSTs; scheme and host of a subscription whose owner you cannot act as';
COMMENT ON COLUMN pgwh.status.state IS 'active, retrying, paused, disabled, held (a copy that must not send) or error (nothing can be sent)';
COMMENT ON COLUMN pgwh.status.mode IS 'live: events pass through memory; draining: what the journal holds is read back and sent; suspended: the endpoint fails as a whole, and only probes are sent (the circuit breaker is open); null while the dispatcher does not know the subscription';
COMMENT ON COLUMN pgwh.status.reason IS 'why it is in this state';
COMMENT ON COLUMN pgwh.status.next_step IS 'what to type; null when there is nothing to do';
COMMENT ON COLUMN pgwh.status.pending IS 'events captured and not delivered yet; this and the other figures are null while the dispatcher does not run or does not know the subscription yet';
COMMENT ON COLUMN pgwh.status.retrying IS 'of these, events that failed and wait for their next attempt';
COMMENT ON COLUMN pgwh.status.in_flight IS 'requests under way';
COMMENT ON COLUMN pgwh.status.delivered IS 'events delivered so far, without those of replays';
COMMENT ON COLUMN pgwh.status.dropped IS 'events for which the transform returned NULL, so that nothing was sent';
COMMENT ON COLUMN pgwh.status.dead IS 'events given up so far, without those of replays';
COMMENT ON COLUMN pgwh.status.blocked_keys IS 'keys whose newer events wait behind a failed one';
COMMENT ON COLUMN pgwh.status.bottleneck IS 'what limits its speed while something is pending';
COMMENT ON COLUMN pgwh.status.gap IS 'the last range of changes that it will never get, see pgwh.gaps';
COMMENT ON COLUMN pgwh.status.oldest_pending IS 'when the oldest pending event was committed';
COMMENT ON COLUMN pgwh.status.lag_bytes IS 'WAL between the position it has reached and the end';
COMMENT ON COLUMN pgwh.status.lag_seconds IS 'age of the oldest pending event, 0 when there is none';
COMMENT ON COLUMN pgwh.status.last_success_at IS 'when a request last succeeded';
COMMENT ON COLUMN pgwh.status.last_failure_at IS 'when a request last failed';
COMMENT ON COLUMN pgwh.status.last_status IS 'HTTP status of the last response';
COMMENT ON COLUMN pgwh.status.last_error IS 'what the last failure was';
COMMENT ON COLUMN pgwh.status.next_attempt_at IS 'when the next retry is due';
COMMENT ON COLUMN pgwh.status.p50_ms IS 'median duration of recent requests, in milliseconds';
COMMENT ON COLUMN pgwh.status.p99_ms IS 'duration that 99 of 100 recent requests stayed below, in milliseconds';

-- Stable, so that it is put into the query that calls it, and conditions reach the view.
CREATE FUNCTION pgwh.status() RETURNS SETOF pgwh.status
    LANGUAGE sql STABLE BEGIN ATOMIC SELECT * FROM pgwh.status; END;
COMMENT ON FUNCTION pgwh.status() IS 'one row a subscription: how it fares, why, and what to type';

CREATE FUNCTION pgwh.metrics() RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'metrics_wrapper';
COMMENT ON FUNCTION pgwh.metrics() IS 'metrics of this database as OpenMetrics text: of all subscriptions for members of pg_monitor, of their own for others';

CREATE FUNCTION pgwh.metric_samples(
    prefix text DEFAULT '', OUT metric text, OUT database text, OUT subscription text, OUT worker text, OUT state text,
    OUT outcome text, OUT error_class text, OUT le text, OUT version text, OUT check_name text, OUT value double precision
) RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'metric_samples_wrapper';
COMMENT ON FUNCTION pgwh.metric_samples(text) IS 'what pgwh.metrics() tells, a row a sample, of the metrics whose names begin with prefix';

CREATE FUNCTION pgwh.wait(
    name text, timeout interval DEFAULT '30 s', backfill bigint DEFAULT NULL, replay bigint DEFAULT NULL
) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'wait_wrapper';
COMMENT ON FUNCTION pgwh.wait(text, interval, bigint, bigint) IS
'Waits until everything committed before the call has reached the subscription, with all backfills and replays that were requested before it.
False when the time is up before, and at once, with a NOTICE that says why, when it would wait in vain: the subscription or the backfill
that it is called for is paused, a backfill has failed, or the transaction itself has written. Other backfills that are paused are not
waited for.
  name      the subscription
  timeout   how long to wait at most
  backfill, replay   wait for this backfill or replay, and for no others
Example: SELECT pgwh.wait(''orders-to-billing'', ''10 s'');';

-- ---------------------------------------------------------------------------------------------------------------
-- Again

CREATE FUNCTION pgwh.pause(name text) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'pause_wrapper';
COMMENT ON FUNCTION pgwh.pause(text) IS 'sends a subscription nothing until pgwh.resume(name); its changes are kept. False when it was paused already';

CREATE FUNCTION pgwh.resume(name text) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'resume_wrapper';
COMMENT ON FUNCTION pgwh.resume(text) IS 'sends a paused subscription what was kept for it, in order, and then goes on; of one that is not paused, failed events are tried again at once. False when there was nothing to resume or to try again';

CREATE FUNCTION pgwh.skip(delivery_id bigint) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'skip_wrapper';
COMMENT ON FUNCTION pgwh.skip(bigint) IS 'gives up a delivery that is pending or being retried, so that newer changes of its rows go on; it becomes a dead letter';

CREATE FUNCTION pgwh.redeliver(delivery_id bigint) RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'redeliver_wrapper';
COMMENT ON FUNCTION pgwh.redeliver(bigint) IS 'sends a delivery''s events again and, behind them, what has happened to their rows since; returns the id of the replay';

CREATE FUNCTION pgwh.replay(
    name text, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, "only" text DEFAULT 'all', tables text[] DEFAULT NULL,
    since_lsn pg_lsn DEFAULT NULL, until_lsn pg_lsn DEFAULT NULL
) RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'replay_wrapper';
COMMENT ON FUNCTION pgwh.replay(text, timestamptz, timestamptz, text, text[], pg_lsn, pg_lsn) IS
'Sends a subscription its events again, under the same ids and in order with its live ones; returns the id of the replay.
  name    the subscription
  since, until   when they were committed, both ends included; until is now when left out
  only    all, dead (given up) or undelivered (given up or pending); a word of SQL, so it goes into double quotes
  tables  patterns schema.table with * wildcards, default all
  since_lsn, until_lsn   instead of since and until: positions in the write-ahead log, the commit.lsn of webhooks, both ends included
Examples: SELECT pgwh.replay(''orders-to-billing'', now() - interval ''1 hour'', "only" => ''dead'');
SELECT pgwh.replay(''orders-to-billing'', since_lsn => ''0/15A8F50'');
TABLE pgwh.replays shows how far it is.';

CREATE FUNCTION pgwh.replay(
    name text, since pg_lsn, until pg_lsn DEFAULT NULL, "only" text DEFAULT 'all', tables text[] DEFAULT NULL
) RETURNS bigint
    LANGUAGE sql VOLATILE AS $$
    SELECT pgwh.replay(name, "only" => "only", tables => tables, since_lsn => since, until_lsn => until)
$$;
COMMENT ON FUNCTION pgwh.replay(text, pg_lsn, pg_lsn, text, text[]) IS
'Sends a subscription its events again, by positions in the write-ahead log: the same as since_lsn and until_lsn.
Example: SELECT pgwh.replay(''orders-to-billing'', ''0/15A8F50''::pg_lsn);';

-- A literal of no type is of this one, where it would be either of the two above.
CREATE FUNCTION pgwh.replay(
    name text, since text, until text DEFAULT NULL, "only" text DEFAULT 'all', tables text[] DEFAULT NULL
) RETURNS bigint
    LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN coalesce(since, until) OPERATOR(pg_catalog.~) '^[0-9A-Fa-f]+/[0-9A-Fa-f]+$'
        THEN pgwh.replay(name, since::pg_catalog.pg_lsn, until::pg_catalog.pg_lsn, "only", tables)
        ELSE pgwh.replay(name, since::timestamptz, until::timestamptz, "only", tables) END
$$;
COMMENT ON FUNCTION pgwh.replay(text, text, text, text, text[]) IS
'Sends a subscription its events again, since and until a time or a position in the write-ahead log.
Examples: SELECT pgwh.replay(''orders-to-billing'', ''yesterday'');
SELECT pgwh.replay(''orders-to-billing'', since => ''0/15A8F50'');';

CREATE FUNCTION pgwh.cancel_replay(id bigint) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'cancel_replay_wrapper';
COMMENT ON FUNCTION pgwh.cancel_replay(bigint) IS 'ends a replay; what it has not sent yet is not sent again';

CREATE FUNCTION pgwh.why(
    table_name text, key jsonb,
    OUT event_id text, OUT committed_at timestamptz, OUT action text, OUT subscription text, OUT fate text,
    OUT delivery_id bigint, OUT attempts integer, OUT status_code integer, OUT error text, OUT at timestamptz
) RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'why_wrapper';
COMMENT ON FUNCTION pgwh.why(text, jsonb) IS
'What became of a row''s latest changes: one row for each of the last 20 events of that key and each subscription.
  table_name  schema.table, or a table in the search path
  key         the values of the key''s columns, as in the webhook''s key
Example: SELECT * FROM pgwh.why(''public.orders'', ''{"id": 7}'');';

CREATE FUNCTION pgwh.forget(
    table_name text, key jsonb,
    OUT events_forgotten bigint, OUT deliveries_pending bigint, OUT attempts_cleared bigint
) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'forget_wrapper';
COMMENT ON FUNCTION pgwh.forget(text, jsonb) IS
'Erases what the journal has of a row: data of its finished events, what endpoints answered, and errors that may quote it. Ids and outcomes stay.
Events that are still to be delivered are not erased, but counted.
  table_name  schema.table, or a table in the search path
  key         the values of the key''s columns, as in the webhook''s key
Example: SELECT * FROM pgwh.forget(''public.customers'', ''{"id": 7}'');';

-- ---------------------------------------------------------------------------------------------------------------
-- Messages

CREATE TABLE pgwh_internal.message_key (
    key text PRIMARY KEY DEFAULT pgwh.generate_secret()
);
CREATE UNIQUE INDEX message_key_is_one_row ON pgwh_internal.message_key ((true));
COMMENT ON TABLE pgwh_internal.message_key IS 'one row: what seals the messages that pgwh.emit() and pgwh.annotate() write, so that no role can forge them';
COMMENT ON COLUMN pgwh_internal.message_key.key IS 'drawn at CREATE EXTENSION, never changed, never dumped';
INSERT INTO pgwh_internal.message_key DEFAULT VALUES;

CREATE FUNCTION pgwh.emit(type text, payload jsonb, key text DEFAULT NULL) RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'emit_wrapper';
COMMENT ON FUNCTION pgwh.emit(text, jsonb, text) IS
'Sends an event of your own to all subscriptions that have message in their event_types, if and only if the transaction commits.
  type     what it is, 1 to 200 bytes; becomes the webhook''s type
  payload  what it says; becomes data.payload
  key      messages of the same key arrive in order; without one they wait for no other
Example: SELECT pgwh.emit(''order.paid'', ''{"id": 7}'', key => ''7'');
To let a role do no more than that: GRANT USAGE ON SCHEMA pgwh TO app; GRANT EXECUTE ON FUNCTION pgwh.emit TO app;';

CREATE FUNCTION pgwh.annotate(annotations jsonb) RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'annotate_wrapper';
COMMENT ON FUNCTION pgwh.annotate(jsonb) IS
'Attaches context, such as who does it, to those events of the transaction that follow. Called again, it replaces what was
said before; null takes it back, and so does rolling back to a savepoint before it.
Example: SELECT pgwh.annotate(''{"user": 42, "request": "7c9e"}'');';

CREATE INDEX subscriptions_to_system_events ON pgwh.subscriptions (id) WHERE 'system' = ANY (event_types);

CREATE FUNCTION pgwh_internal.system_event(type text, subscription_id bigint, details jsonb) RETURNS bytea
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT pg_catalog.convert_to(pg_catalog.json_build_object('readers', r.ids, 'type', system_event.type, 'key', s.name,
                'payload', pg_catalog.jsonb_build_object('subscription_id', s.id, 'subscription', s.name)
                    || system_event.details)::text, pg_catalog.getdatabaseencoding())
        FROM pgwh.subscriptions s, LATERAL (
            SELECT pg_catalog.array_agg(w.id) AS ids FROM pgwh.subscriptions w
                -- A role may have been dropped.
                JOIN pg_catalog.pg_roles reader ON reader.rolname = w.owner
                LEFT JOIN pg_catalog.pg_roles o ON o.rolname = s.owner
            WHERE 'system' = ANY (w.event_types) AND w.enabled AND w.id <> s.id
              AND (pg_catalog.pg_has_role(reader.oid, o.oid, 'USAGE')
                OR pg_catalog.pg_has_role(reader.oid, 'pg_monitor', 'USAGE'))) r
        WHERE s.id = system_event.subscription_id AND r.ids IS NOT NULL
          AND (system_event.type <> 'pgwh.dead_letter' OR 'system' <> ALL (s.event_types));
    END;
COMMENT ON FUNCTION pgwh_internal.system_event(text, bigint, jsonb) IS 'what the dispatcher writes into the log about a subscription, with who gets it; null when nobody does. Dead letters of system events make no system events, so that they make no more dead letters';

-- ---------------------------------------------------------------------------------------------------------------
-- Schema changes

CREATE TABLE pgwh_internal.schema_changes (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lsn pg_lsn NOT NULL DEFAULT pg_current_wal_insert_lsn(),
    xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    installed text NOT NULL DEFAULT pgwh_internal.installed(),
    role text NOT NULL,
    command_tag text NOT NULL,
    command text,
    objects json NOT NULL,
    places json NOT NULL
);
CREATE INDEX schema_changes_by_time ON pgwh_internal.schema_changes (changed_at);
COMMENT ON TABLE pgwh_internal.schema_changes IS 'what event triggers note of commands that change the schema; each new row is sent to subscriptions with ddl in their event_types';
COMMENT ON COLUMN pgwh_internal.schema_changes.id IS 'random, so that a replicated row meets no other';
COMMENT ON COLUMN pgwh_internal.schema_changes.changed_at IS 'when the command had been run';
COMMENT ON COLUMN pgwh_internal.schema_changes.lsn IS 'where write-ahead log ended then; the transaction committed behind it';
COMMENT ON COLUMN pgwh_internal.schema_changes.xid IS 'the transaction, with its epoch';
COMMENT ON COLUMN pgwh_internal.schema_changes.installed IS 'where it was noted, see pgwh_internal.installed(): a replicated row is no change of the schema here';
COMMENT ON COLUMN pgwh_internal.schema_changes.role IS 'who ran the command';
COMMENT ON COLUMN pgwh_internal.schema_changes.command_tag IS 'what kind of command it was';
COMMENT ON COLUMN pgwh_internal.schema_changes.command IS 'the command; null when that is not known';
COMMENT ON COLUMN pgwh_internal.schema_changes.objects IS 'what it created, altered or dropped, tables with the columns that they have now';
COMMENT ON COLUMN pgwh_internal.schema_changes.places IS 'schemas and tables whose subscribers want to know';

CREATE VIEW pgwh.schema_history AS
    SELECT c.id, c.changed_at, c.lsn, c.xid, c.role, c.command_tag, c.command, c.objects
    FROM pgwh_internal.schema_changes c ORDER BY c.lsn, c.changed_at;
COMMENT ON VIEW pgwh.schema_history IS 'commands that changed the schema, in the order in which they were run; kept for a year';
COMMENT ON COLUMN pgwh.schema_history.id IS 'names the change';
COMMENT ON COLUMN pgwh.schema_history.changed_at IS 'when the command had been run';
COMMENT ON COLUMN pgwh.schema_history.lsn IS 'where write-ahead log ended then; the transaction committed behind it';
COMMENT ON COLUMN pgwh.schema_history.xid IS 'the transaction, with its epoch';
COMMENT ON COLUMN pgwh.schema_history.role IS 'who ran the command';
COMMENT ON COLUMN pgwh.schema_history.command_tag IS 'what kind of command it was';
COMMENT ON COLUMN pgwh.schema_history.command IS 'the command; null when that is not known';
COMMENT ON COLUMN pgwh.schema_history.objects IS 'what it created, altered or dropped, tables with the columns that they have now';

-- In PL/pgSQL, whose plans a session keeps; functions in SQL are planned at each call. The caller sets the search path.
CREATE FUNCTION pgwh_internal.columns_of(relation oid) RETURNS json
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT coalesce(json_agg(json_build_object(
            'attnum', a.attnum, 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
            'nullable', NOT a.attnotnull,
            'default', CASE WHEN a.atthasdef THEN (SELECT pg_get_expr(d.adbin, d.adrelid)
                FROM pg_catalog.pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) END,
            'generated', a.attgenerated <> '',
            'identity', CASE a.attidentity WHEN 'a' THEN 'ALWAYS' WHEN 'd' THEN 'BY DEFAULT' END,
            'unique', a.attnum = ANY (ARRAY(SELECT i.indkey[0] FROM pg_catalog.pg_index i WHERE i.indrelid = relation
                AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1))
            ) ORDER BY a.attnum), '[]')
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped);
END $$;
COMMENT ON FUNCTION pgwh_internal.columns_of(oid) IS 'the columns of a table or composite type, as schema changes tell of them';

CREATE FUNCTION pgwh_internal.primary_key_columns_of(relation oid) RETURNS json
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT json_agg((SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attnum = k.attnum)
            ORDER BY k.place)
        FROM pg_catalog.pg_index i CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, place)
        WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts);
END $$;
COMMENT ON FUNCTION pgwh_internal.primary_key_columns_of(oid) IS 'names of the columns of a table''s primary key; null when it has none';

CREATE FUNCTION pgwh_internal.schema_is_noted(schema_name name) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    RETURN schema_name NOT IN ('pgwh', 'pgwh_internal', 'pg_catalog', 'information_schema', 'pg_toast')
        AND schema_name::text !~ '^pg_(toast_)?temp_';
COMMENT ON FUNCTION pgwh_internal.schema_is_noted(name) IS 'whether changes in a schema are told: not those of the server''s own, of temporary tables and of ours';

CREATE FUNCTION pgwh_internal.session_role() RETURNS text
    LANGUAGE sql STABLE
    RETURN CASE current_setting('role') WHEN 'none' THEN session_user::text ELSE current_setting('role') END;
COMMENT ON FUNCTION pgwh_internal.session_role() IS 'who acts in this session, whoever owns the function that asks';

CREATE FUNCTION pgwh_internal.running_command() RETURNS bytea
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'running_command_wrapper';
COMMENT ON FUNCTION pgwh_internal.running_command() IS 'text of the utility command that runs, in the encoding of the database; null when it is not known';

CREATE FUNCTION pgwh_internal.tables_above("table" oid) RETURNS oid[]
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'tables_above_wrapper';
COMMENT ON FUNCTION pgwh_internal.tables_above(oid) IS 'partitioned tables above a partition, or parents above a child by INHERITS, the topmost last';

CREATE FUNCTION pgwh_internal.tables_below("table" oid) RETURNS oid[]
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'tables_below_wrapper';
COMMENT ON FUNCTION pgwh_internal.tables_below(oid) IS 'partitions of a table and its children by INHERITS, at all levels';

CREATE FUNCTION pgwh_internal.table_of_dropped_index(index oid) RETURNS oid
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'table_of_dropped_index_wrapper';
COMMENT ON FUNCTION pgwh_internal.table_of_dropped_index(oid) IS 'the table that an index was of which the present transaction has dropped; null of anything else';

CREATE FUNCTION pgwh_internal.tables_above_dropped("table" oid) RETURNS oid[]
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'tables_above_dropped_wrapper';
COMMENT ON FUNCTION pgwh_internal.tables_above_dropped(oid) IS 'the tables above a partition or child that the present transaction has dropped';

CREATE FUNCTION pgwh_internal.former_name(OUT schema text, OUT relation text) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'former_name_wrapper';
COMMENT ON FUNCTION pgwh_internal.former_name() IS 'the name before the running command, if it renames or moves a relation or renames a schema, whose relation is null';

CREATE FUNCTION pgwh_internal.parted_tables() RETURNS oid[]
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'parted_tables_wrapper';
COMMENT ON FUNCTION pgwh_internal.parted_tables() IS 'partitions that the running command detaches, with all below them, or parents that it takes a child from, with all above them';

-- Not in C, so that commands go on also where the library is gone; in one function, whose plans a session makes once.
CREATE FUNCTION pgwh_internal.note_schema_change() RETURNS event_trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF tg_event = 'ddl_command_end'
        AND (tg_tag LIKE 'CREATE %' OR tg_tag LIKE 'ALTER %' OR tg_tag IN ('SELECT INTO', 'IMPORT FOREIGN SCHEMA'))
    THEN
        WITH noted AS (
            SELECT DISTINCT ON (e.classid, e.objid) e.n, e.command_tag = tg_tag AS is_main, e.objid, e.object_type,
                e.object_identity, s.nspname AS schema,
                CASE WHEN t.relkind IN ('r', 'p', 'f', 'v', 'm') THEN t.oid END AS table_id,
                CASE WHEN t.relkind IN ('r', 'p', 'f', 'v', 'm') THEN t.relname END AS table_name,
                coalesce(t.relname, y.typname) AS name,
                CASE WHEN r.relkind IN ('r', 'p', 'f', 'v', 'm', 'c') THEN r.oid ELSE nullif(y.typrelid, 0) END AS described,
                a.above, coalesce(a.above[array_upper(a.above, 1)], t.oid) AS root,
                EXISTS (SELECT FROM pg_catalog.pg_depend m WHERE m.deptype = 'e'
                    AND (m.classid = 'pg_catalog.pg_namespace'::regclass AND m.objid = s.oid
                        OR m.classid = CASE WHEN t.oid IS NULL THEN e.classid ELSE 'pg_catalog.pg_class'::regclass END
                            AND m.objid = coalesce(t.oid, e.objid)) OFFSET 0) AS is_member
            FROM pg_event_trigger_ddl_commands() WITH ORDINALITY
                    e (classid, objid, objsubid, command_tag, object_type, schema_name, object_identity, in_extension, command, n)
                -- OFFSET has each row looked up by an index: the server expects a thousand commands, and would read the catalogs.
                LEFT JOIN LATERAL (SELECT r.oid, r.relkind, r.relpersistence FROM pg_catalog.pg_class r
                    WHERE e.classid = 'pg_catalog.pg_class'::regclass AND r.oid = e.objid OFFSET 0) r ON true
                LEFT JOIN LATERAL (SELECT x.indrelid FROM pg_catalog.pg_index x
                    WHERE x.indexrelid = r.oid AND r.relkind IN ('i', 'I') OFFSET 0) x ON true
                LEFT JOIN LATERAL (SELECT t.oid, t.relname, t.relkind, t.relnamespace FROM pg_catalog.pg_class t
                    WHERE t.oid = coalesce(x.indrelid, r.oid) OFFSET 0) t ON true
                LEFT JOIN LATERAL (SELECT y.typname, y.typrelid, y.typnamespace FROM pg_catalog.pg_type y
                    WHERE e.classid = 'pg_catalog.pg_type'::regclass AND y.oid = e.objid OFFSET 0) y ON true
                JOIN LATERAL (SELECT s.oid, s.nspname FROM pg_catalog.pg_namespace s WHERE s.oid = coalesce(t.relnamespace,
                    y.typnamespace, CASE WHEN e.classid = 'pg_catalog.pg_namespace'::regclass THEN e.objid END) OFFSET 0) s ON true
                LEFT JOIN LATERAL (SELECT pgwh_internal.tables_above(t.oid) AS above OFFSET 0) a ON t.relkind IN ('r', 'p', 'f')
            WHERE NOT e.in_extension AND r.relpersistence IS DISTINCT FROM 't' AND pgwh_internal.schema_is_noted(s.nspname)
            ORDER BY e.classid, e.objid, e.n
        ), places AS (
            SELECT o.is_main, o.n, 0 AS above, o.schema, o.name, o.table_id IS NOT NULL AS is_table, coalesce(o.root, 0) AS root,
                o.is_member
            FROM noted o
            UNION ALL
            SELECT o.is_main, o.n, a.rank, s.nspname, c.relname, true, o.root,
                EXISTS (SELECT FROM pg_catalog.pg_depend m WHERE m.deptype = 'e'
                    AND (m.classid = 'pg_catalog.pg_namespace'::regclass AND m.objid = s.oid
                        OR m.classid = 'pg_catalog.pg_class'::regclass AND m.objid = c.oid) OFFSET 0)
            FROM noted o CROSS JOIN LATERAL (
                    SELECT 1, u.oid FROM unnest(o.above) u (oid)
                    -- What such a command does to a table it does to all below.
                    UNION ALL SELECT 2, u.oid FROM unnest(pgwh_internal.tables_below(o.table_id)) u (oid) WHERE tg_tag IN ('ALTER TABLE', 'CREATE INDEX')
                    UNION ALL SELECT 3, u.oid FROM unnest(pgwh_internal.parted_tables()) u (oid) WHERE tg_tag = 'ALTER TABLE' AND o.is_main) a (rank, oid)
                CROSS JOIN LATERAL (SELECT c.oid, c.relname, c.relnamespace FROM pg_catalog.pg_class c
                    WHERE c.oid = a.oid OFFSET 0) c
                CROSS JOIN LATERAL (SELECT s.oid, s.nspname FROM pg_catalog.pg_namespace s
                    WHERE s.oid = c.relnamespace OFFSET 0) s
            UNION ALL
            -- Those who know it by the name that it had.
            SELECT o.is_main, o.n, 4, f.schema::name, f.relation::name, f.relation IS NOT NULL, coalesce(o.root, 0), o.is_member
            FROM (SELECT * FROM noted o WHERE o.is_main AND tg_tag LIKE 'ALTER %' ORDER BY o.n LIMIT 1) o
                CROSS JOIN LATERAL pgwh_internal.former_name() f
            WHERE (f.schema, f.relation) IS DISTINCT FROM (o.schema::text, o.table_name::text)
        )
        INSERT INTO pgwh_internal.schema_changes (role, command_tag, command, objects, places)
        SELECT pgwh_internal.session_role(), tg_tag, convert_from(pgwh_internal.running_command(), getdatabaseencoding()), o.objects, p.places
        FROM (
            SELECT json_agg(CASE WHEN o.described IS NULL
                THEN json_build_object('type', o.object_type, 'identity', o.object_identity, 'schema', o.schema,
                    'table', o.table_name, 'oid', o.objid::bigint)
                ELSE json_build_object('type', o.object_type, 'identity', o.object_identity, 'schema', o.schema,
                    'table', o.table_name, 'oid', o.objid::bigint, 'columns', pgwh_internal.columns_of(o.described),
                    'primary_key_columns', pgwh_internal.primary_key_columns_of(o.described))
                END ORDER BY o.is_main DESC, o.n) AS objects
            FROM noted o
        ) o, (
            SELECT json_agg(json_build_object('schema', p.schema, 'name', p.name, 'is_table', p.is_table,
                'is_users', NOT p.is_member, 'root', p.root::bigint) ORDER BY p.above, p.is_main DESC, p.n) AS places
            FROM places p
        ) p
        WHERE o.objects IS NOT NULL;
    ELSIF tg_event = 'sql_drop' AND tg_tag LIKE 'DROP %' THEN
        WITH noted AS (
            SELECT d.n, d.original, d.objid, d.object_type, d.object_identity,
                coalesce(d.schema_name, d.object_name) AS schema, t.oid AS described,
                coalesce(t.relname::text, CASE WHEN d.schema_name IS NOT NULL THEN d.object_name END) AS name,
                t.oid IS NOT NULL OR d.object_type IN ('table', 'foreign table', 'view', 'materialized view') AS is_table,
                coalesce(a.above[array_upper(a.above, 1)], t.oid, d.objid) AS root, a.above || pgwh_internal.tables_below(t.oid) AS others,
                EXISTS (SELECT FROM pg_catalog.pg_depend m WHERE m.deptype = 'e'
                    AND (m.classid = 'pg_catalog.pg_namespace'::regclass AND m.objid = s.oid
                        OR m.classid = 'pg_catalog.pg_class'::regclass AND m.objid = t.oid) OFFSET 0) AS is_member
            FROM pg_event_trigger_dropped_objects() WITH ORDINALITY
                    d (classid, objid, objsubid, original, normal, is_temporary, object_type, schema_name, object_name, object_identity, address_names, address_args, n)
                -- The table that has lost a column or an index.
                LEFT JOIN LATERAL (SELECT t.oid, t.relname, t.relkind FROM pg_catalog.pg_class t
                    WHERE t.oid = CASE WHEN d.classid = 'pg_catalog.pg_class'::regclass
                        THEN CASE WHEN d.objsubid > 0 THEN d.objid ELSE pgwh_internal.table_of_dropped_index(d.objid) END END
                    OFFSET 0) t ON true
                LEFT JOIN LATERAL (SELECT s.oid FROM pg_catalog.pg_namespace s WHERE s.nspname = d.schema_name OFFSET 0) s ON true
                LEFT JOIN LATERAL (SELECT CASE WHEN t.oid IS NULL THEN pgwh_internal.tables_above_dropped(d.objid) ELSE pgwh_internal.tables_above(t.oid) END AS above
                    OFFSET 0) a ON t.relkind IN ('r', 'p', 'f') OR t.oid IS NULL AND d.object_type IN ('table', 'foreign table')
            WHERE d.classid IN ('pg_catalog.pg_class'::regclass, 'pg_catalog.pg_type'::regclass, 'pg_catalog.pg_namespace'::regclass)
                -- Partitions go with their table by themselves, as indexes do.
                AND NOT d.is_temporary AND (d.original OR d.normal OR d.object_type IN ('table', 'foreign table'))
                -- What belonged to an extension is none of the user's.
                AND (tg_tag <> 'DROP EXTENSION' OR d.objsubid > 0)
                AND pgwh_internal.schema_is_noted(coalesce(d.schema_name, d.object_name)::name)
        ), places AS (
            SELECT o.original, o.n, 0 AS rank, o.schema, o.name, o.is_table,
                CASE WHEN o.is_table THEN o.root::bigint ELSE 0 END AS root, o.is_member
            FROM noted o
            UNION ALL
            SELECT o.original, o.n, 1, s.nspname, c.relname, true, o.root::bigint,
                EXISTS (SELECT FROM pg_catalog.pg_depend m WHERE m.deptype = 'e'
                    AND (m.classid = 'pg_catalog.pg_namespace'::regclass AND m.objid = s.oid
                        OR m.classid = 'pg_catalog.pg_class'::regclass AND m.objid = c.oid) OFFSET 0)
            FROM noted o CROSS JOIN LATERAL unnest(o.others) u (oid)
                CROSS JOIN LATERAL (SELECT c.oid, c.relname, c.relnamespace FROM pg_catalog.pg_class c
                    WHERE c.oid = u.oid OFFSET 0) c
                CROSS JOIN LATERAL (SELECT s.oid, s.nspname FROM pg_catalog.pg_namespace s
                    WHERE s.oid = c.relnamespace OFFSET 0) s
        )
        INSERT INTO pgwh_internal.schema_changes (role, command_tag, command, objects, places)
        SELECT pgwh_internal.session_role(), tg_tag, convert_from(pgwh_internal.running_command(), getdatabaseencoding()), o.objects, p.places
        FROM (
            SELECT json_agg(CASE WHEN o.described IS NULL
                THEN json_build_object('type', o.object_type, 'identity', o.object_identity, 'schema', o.schema,
                    'table', CASE WHEN o.is_table THEN o.name END, 'oid', o.objid::bigint)
                ELSE json_build_object('type', o.object_type, 'identity', o.object_identity, 'schema', o.schema,
                    'table', o.name, 'oid', o.objid::bigint, 'columns', pgwh_internal.columns_of(o.described),
                    'primary_key_columns', pgwh_internal.primary_key_columns_of(o.described))
                END ORDER BY o.original DESC, o.n) AS objects
            FROM noted o
        ) o, (
            SELECT json_agg(json_build_object('schema', p.schema, 'name', p.name, 'is_table', p.is_table, 'is_users', NOT p.is_member,
                'root', p.root) ORDER BY p.rank, p.original DESC, p.n) AS places
            FROM places p
        ) p
        WHERE o.objects IS NOT NULL;
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'this schema change is not sent to webhooks' USING
        DETAIL = format('It could not be noted in pgwh_internal.schema_changes: %s.', SQLERRM),
        HINT = 'The command itself is not affected.';
END $$;
COMMENT ON FUNCTION pgwh_internal.note_schema_change() IS 'notes a change of the schema; when it cannot, it warns and the command goes on';

-- ---------------------------------------------------------------------------------------------------------------
-- From the beginning

CREATE VIEW pgwh.backfills WITH (security_barrier) AS
    SELECT r.id, r.subscription_id, r.subscription, r.tables, r.filter, r.order_by, r.start, r.chunk_size,
        r.state, nullif(concat_ws('; ', coalesce(r.reason, CASE WHEN r.state IN ('waiting', 'running') AND pgwh_internal.lacks_backfiller()
            THEN 'no worker process is free to read it: see pgwh.health()' END),
            'it leaves out tables that cannot be read: ' || t.left_out), '') AS reason,
        coalesce(t.rows_done, 0) AS rows_done,
        coalesce(t.rows_sent, 0) AS rows_sent,
        t.rows_total,
        CASE WHEN r.state = 'done' THEN 100 WHEN t.rows_total > 0 THEN least(round(100.0 * t.rows_done / t.rows_total, 1), 99.9) END AS percent,
        (t.rows_done / nullif(t.seconds, 0))::bigint AS rows_per_second,
        CASE WHEN r.state IN ('waiting', 'running', 'paused')
            THEN date_trunc('second', make_interval(secs => t.seconds * (t.rows_total - t.rows_done) / nullif(t.rows_done, 0))) END AS eta,
        coalesce(t.tables_done, 0) AS tables_done,
        CASE WHEN r.state = 'done' THEN coalesce(t.tables_total, 0) ELSE t.tables_total END AS tables_total,
        p.position,
        r.created_at, r.started_at, r.finished_at
    FROM pgwh_internal.backfill_requests r
    LEFT JOIN LATERAL (
        SELECT sum(t.rows_read)::bigint AS rows_done, sum(t.rows_sent)::bigint AS rows_sent,
            -- Of a table with more rows than estimated, or that is not read from its beginning, the total is not known.
            CASE WHEN bool_and(t.done OR r.start IS NULL AND t.estimate >= t.rows_read)
                THEN sum(CASE WHEN t.done THEN t.rows_read ELSE t.estimate END)::bigint END AS rows_total,
            sum(t.seconds) AS seconds, count(*) FILTER (WHERE t.done AND t.left_out IS NULL) AS tables_done,
            nullif(count(*) FILTER (WHERE t.left_out IS NULL), 0) AS tables_total,
            string_agg(format('%s (%s)', t.table_name, t.left_out), ', ' ORDER BY t.table_name) FILTER (WHERE t.left_out IS NOT NULL) AS left_out
        FROM pgwh_internal.backfill_tables t WHERE t.backfill_id = r.id) t ON true
    LEFT JOIN LATERAL (
        SELECT t.table_name || coalesce(' ' || convert_from(t.position, 'UTF8'), '') AS position
        FROM pgwh_internal.backfill_tables t WHERE t.backfill_id = r.id AND NOT t.done ORDER BY t.relation LIMIT 1) p ON true
    LEFT JOIN pgwh.subscriptions s ON s.id = r.subscription_id
    WHERE pgwh_internal.sees(s.owner)
    ORDER BY r.id;
COMMENT ON VIEW pgwh.backfills IS 'one row a backfill: how far it is, how fast, and how long it will take';
COMMENT ON COLUMN pgwh.backfills.id IS 'its id';
COMMENT ON COLUMN pgwh.backfills.subscription_id IS 'who gets the rows';
COMMENT ON COLUMN pgwh.backfills.subscription IS 'the subscription''s name when the backfill was asked for';
COMMENT ON COLUMN pgwh.backfills.tables IS 'patterns of the tables that are read';
COMMENT ON COLUMN pgwh.backfills.filter IS 'rows for which this is true; null: all';
COMMENT ON COLUMN pgwh.backfills.order_by IS 'the column that rows are read in the order of; null: of the key';
COMMENT ON COLUMN pgwh.backfills.start IS 'rows whose value of that column is not less; null: all';
COMMENT ON COLUMN pgwh.backfills.chunk_size IS 'most rows that are read at once; null: as many as fit into 5 ms';
COMMENT ON COLUMN pgwh.backfills.state IS 'waiting, running, paused, done (all rows are journaled, and sent like live events), cancelled or failed';
COMMENT ON COLUMN pgwh.backfills.reason IS 'why it failed, and what to type; why it was cancelled; or what it leaves out';
COMMENT ON COLUMN pgwh.backfills.rows_done IS 'rows read so far; a table whose key or order changes is read, and counted, from its start again';
COMMENT ON COLUMN pgwh.backfills.rows_sent IS 'of these, rows that became events: the others were filtered out, or a newer event tells of them';
COMMENT ON COLUMN pgwh.backfills.rows_total IS 'about how many rows there are to read, by the size of the tables and the statistics of ANALYZE; null while that is not known: before it begins, with start, and when there are more rows than estimated';
COMMENT ON COLUMN pgwh.backfills.percent IS 'how much of that is done; null while the total is not known';
COMMENT ON COLUMN pgwh.backfills.rows_per_second IS 'how fast it reads, pauses left out';
COMMENT ON COLUMN pgwh.backfills.eta IS 'how long the rest will take at that speed; null while the total is not known';
COMMENT ON COLUMN pgwh.backfills.tables_done IS 'tables and partitions that have been read to their end';
COMMENT ON COLUMN pgwh.backfills.tables_total IS 'tables and partitions known so far; null before it begins';
COMMENT ON COLUMN pgwh.backfills.position IS 'the table that is being read, and the last row read of it';
COMMENT ON COLUMN pgwh.backfills.created_at IS 'when it was asked for';
COMMENT ON COLUMN pgwh.backfills.started_at IS 'when it began';
COMMENT ON COLUMN pgwh.backfills.finished_at IS 'when it ended';

CREATE FUNCTION pgwh.backfill(
    name text,
    table_name text DEFAULT NULL,
    filter text DEFAULT NULL,
    order_by text DEFAULT NULL,
    start text DEFAULT NULL,
    chunk_size integer DEFAULT NULL
) RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'backfill_wrapper';
COMMENT ON FUNCTION pgwh.backfill IS
'Sends a subscription the rows that there are, as events with action read, in order with live changes; returns the id of the backfill.
  name        the subscription
  table_name  schema.table, a table in the search path, or a pattern like sales.*; all its tables when left out. Of several tables,
              those that cannot be read are left out, and a NOTICE names them
  filter      a condition over the columns: rows for which it is true
  order_by    a column to read in the order of, which should have an index; the key when left out
  start       the least value of that column, as text
  chunk_size  most rows that are read at once; as many as fit into 5 ms when left out
Example: SELECT pgwh.backfill(''orders-to-billing'', ''public.orders'');
TABLE pgwh.backfills shows how far it is.';

CREATE FUNCTION pgwh.acknowledge_gap(id bigint) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'acknowledge_gap_wrapper';
COMMENT ON FUNCTION pgwh.acknowledge_gap(bigint) IS 'closes a gap that is over and whose rows no backfill can send, or need not: pgwh.gaps keeps it, with who closed it and when';

CREATE FUNCTION pgwh.pause_backfill(id bigint) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'pause_backfill_wrapper';
COMMENT ON FUNCTION pgwh.pause_backfill(bigint) IS 'reads no more of a backfill until pgwh.resume_backfill(id)';

CREATE FUNCTION pgwh.resume_backfill(id bigint) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'resume_backfill_wrapper';
COMMENT ON FUNCTION pgwh.resume_backfill(bigint) IS 'goes on with a backfill that is paused or has failed, from where it was';

CREATE FUNCTION pgwh.cancel_backfill(id bigint) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'cancel_backfill_wrapper';
COMMENT ON FUNCTION pgwh.cancel_backfill(bigint) IS 'ends a backfill; rows that it has read are still sent';

-- ---------------------------------------------------------------------------------------------------------------
-- Who sees and changes what

CREATE FUNCTION pgwh_internal.warn_of_publication() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT p.problem, p.next_step FROM pgwh_internal.publication_problems() p JOIN pg_publication c ON c.pubname = p.publication
        WHERE c.oid IN (
            SELECT CASE e.classid WHEN 'pg_publication'::regclass THEN e.objid
                WHEN 'pg_publication_rel'::regclass THEN (SELECT r.prpubid FROM pg_publication_rel r WHERE r.oid = e.objid)
                WHEN 'pg_publication_namespace'::regclass THEN (SELECT n.pnpubid FROM pg_publication_namespace n WHERE n.oid = e.objid) END
            FROM pg_event_trigger_ddl_commands() e)
    LOOP
        RAISE WARNING USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = found.problem,
            DETAIL = 'A subscriber that lacks these tables stops when the first of their rows arrives.',
            HINT = found.next_step || ' Or, if all readers pick their tables themselves or have the extension: ALTER SYSTEM SET pgwh.allow_all_tables_publications = on; SELECT pg_reload_conf();';
    END LOOP;
END $$;
COMMENT ON FUNCTION pgwh_internal.warn_of_publication() IS 'warns when a publication gets tables of the extension';

CREATE FUNCTION pgwh_internal.accept_local() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'accept_local_wrapper';
COMMENT ON FUNCTION pgwh_internal.accept_local() IS 'drops rows that replication brings from another server: the extension''s tables hold what this server wrote';

CREATE FUNCTION pgwh_internal.refuse_truncate() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
        MESSAGE = format('cannot truncate table "%s.%s"', tg_table_schema, tg_table_name),
        DETAIL = 'It holds the state of pgstream_hooks on this server.',
        HINT = 'To end all subscriptions: DELETE FROM pgwh.subscriptions; If replication from another server truncates it, take the schemas pgwh and pgwh_internal out of the publication there.';
END $$;
COMMENT ON FUNCTION pgwh_internal.refuse_truncate() IS 'refuses TRUNCATE, also when replication brings it from another server';

-- Whatever is granted: rows of what is not said here are for superusers and the workers only. Whatever is replicated: nothing
-- but what this server wrote gets in. The name comes before those of other triggers, which fire in that order.
DO $$
DECLARE
    relation regclass;
    kind "char";
    name name;
BEGIN
    FOR relation, kind IN SELECT c.oid, c.relkind FROM pg_catalog.pg_class c
        WHERE c.relnamespace IN ('pgwh'::pg_catalog.regnamespace, 'pgwh_internal'::pg_catalog.regnamespace) AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
        IF kind = 'r' THEN
            EXECUTE pg_catalog.format('CREATE TRIGGER accept_local BEFORE INSERT OR UPDATE OR DELETE ON %s '
                'FOR EACH ROW EXECUTE FUNCTION pgwh_internal.accept_local()', relation);
            EXECUTE pg_catalog.format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %s '
                'FOR EACH STATEMENT EXECUTE FUNCTION pgwh_internal.refuse_truncate()', relation);
        END IF;
    END LOOP;
    -- Also those that check, and foreign keys: a session that replicates may subscribe, too.
    FOR relation, name IN SELECT t.tgrelid, t.tgname FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace IN ('pgwh'::pg_catalog.regnamespace, 'pgwh_internal'::pg_catalog.regnamespace)
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE %s TRIGGER %I', relation,
            CASE name WHEN 'accept_local' THEN 'REPLICA' ELSE 'ALWAYS' END, name);
    END LOOP;
    -- Of a row of the journal that is rewritten or erased nothing is in write-ahead log for others.
    FOR relation IN SELECT i.inhrelid FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relnamespace = 'pgwh_internal'::pg_catalog.regnamespace AND c.relkind = 'p'
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY NOTHING', relation);
    END LOOP;
END $$;
CREATE POLICY own ON pgwh.subscriptions USING (pgwh_internal.sees(owner));
CREATE POLICY everybody ON pgwh_internal.installation FOR SELECT USING (true);
CREATE POLICY own ON pgwh.replays FOR SELECT
    USING (EXISTS (SELECT FROM pgwh.subscriptions s WHERE s.id = subscription_id AND pgwh_internal.sees(s.owner)));
CREATE POLICY own ON pgwh.gaps FOR SELECT
    USING (EXISTS (SELECT FROM pgwh.subscriptions s WHERE s.id = subscription_id AND pgwh_internal.sees(s.owner)));

CREATE FUNCTION pgwh_internal.require_grantee(role text, caller text) RETURNS name
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    extension_owner CONSTANT regrole := (SELECT e.extowner FROM pg_extension e WHERE e.extname = 'pgstream_hooks');
    folded CONSTANT name := (SELECT r.rolname FROM pg_roles r WHERE r.rolname = lower(role));
    grants CONSTANT boolean := caller = 'grant_usage';
BEGIN
    IF role IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'role must be given',
            HINT = format('For example: SELECT pgwh.%I(''app'');', caller);
    ELSIF NOT pg_has_role(extension_owner, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('permission denied to %s usage of pgwh', CASE WHEN grants THEN 'grant' ELSE 'revoke' END),
            DETAIL = format('Role "%s" is neither a superuser nor a member of %s, which owns the extension.', current_user, extension_owner),
            HINT = format('As such a role: SELECT pgwh.%I(%L);', caller, role);
    ELSIF lower(role) = 'public' AND grants THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = 'usage of pgwh cannot be granted to PUBLIC',
            DETAIL = 'Every role of the server could then send rows to any URL.',
            HINT = 'Grant it to one role and make others its members: CREATE ROLE webhooks; SELECT pgwh.grant_usage(''webhooks'');';
    ELSIF lower(role) = 'public' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = 'usage of pgwh cannot be revoked from PUBLIC',
            DETAIL = 'PUBLIC has none by pgwh.grant_usage().',
            HINT = 'If a GRANT gave it: REVOKE ALL ON SCHEMA pgwh FROM PUBLIC;';
    ELSIF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = role) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('role "%s" does not exist', role),
            HINT = CASE WHEN folded IS NOT NULL AND grants THEN format('SELECT pgwh.grant_usage(%L); or create it: CREATE ROLE %I;', folded, role)
                WHEN grants THEN format('CREATE ROLE %I;', role)
                WHEN folded IS NOT NULL THEN format('SELECT pgwh.revoke_usage(%L);', folded)
                ELSE coalesce('Roles that have it: ' || (SELECT string_agg(a.grantee::regrole::text, ', ' ORDER BY a.grantee::regrole::text)
                        FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
                        WHERE p.oid = 'pgwh.grant_usage(text)'::regprocedure AND a.grantee NOT IN (0, p.proowner)) || '.',
                    'No role has it by pgwh.grant_usage().') END;
    END IF;
    RETURN role;
END $$;
COMMENT ON FUNCTION pgwh_internal.require_grantee(text, text) IS 'the role, or an error that says why its rights here cannot be changed';

-- The role may execute this function, too, which it cannot use: that is the record of who gets the rights of a later version.
CREATE FUNCTION pgwh.grant_usage(role text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    grantee CONSTANT name := pgwh_internal.require_grantee(role, 'grant_usage');
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO %I', grantee);
    EXECUTE format('GRANT SELECT ON pgwh_internal.installation, pgwh.status, pgwh.events, pgwh.deliveries, pgwh.attempts, '
        'pgwh.dead_letters, pgwh.replays, pgwh.backfills, pgwh.gaps TO %I', grantee);
    EXECUTE format('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO %I', grantee);
END $$;
COMMENT ON FUNCTION pgwh.grant_usage(text) IS
'Gives a role all it needs to subscribe to tables that it may read, and to look at its own subscriptions; also what later versions of
the extension add. For superusers and the owner of the extension.
Example: SELECT pgwh.grant_usage(''app'');';

CREATE FUNCTION pgwh.revoke_usage(role text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    grantee CONSTANT name := pgwh_internal.require_grantee(role, 'revoke_usage');
    owned CONSTANT bigint := (SELECT count(*) FROM pgwh.subscriptions s WHERE s.owner = grantee);
BEGIN
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA pgwh, pgwh_internal FROM %I', grantee);
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal FROM %I', grantee);
    EXECUTE format('REVOKE ALL ON SCHEMA pgwh, pgwh_internal FROM %I', grantee);
    IF owned > 0 THEN
        RAISE NOTICE USING MESSAGE = format('role "%s" still has %s as before', grantee,
                CASE owned WHEN 1 THEN '1 subscription, which delivers' ELSE format('%s subscriptions, which deliver', owned) END),
            HINT = format('To end them: DELETE FROM pgwh.subscriptions WHERE owner = %L;', grantee);
    END IF;
END $$;
COMMENT ON FUNCTION pgwh.revoke_usage(text) IS 'takes from a role all rights in the schemas pgwh and pgwh_internal; its subscriptions deliver as before';

CREATE FUNCTION pgwh_internal.renew_usage() RETURNS event_trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() c WHERE c.object_type = 'extension' AND c.object_identity = 'pgstream_hooks') THEN
        -- A function that is created may be called by everybody.
        REVOKE ALL ON ALL ROUTINES IN SCHEMA pgwh, pgwh_internal FROM PUBLIC;
        PERFORM pgwh.grant_usage(r.rolname) FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
            WHERE p.oid = 'pgwh.grant_usage(text)'::regprocedure AND a.grantee <> p.proowner;
    END IF;
END $$;
COMMENT ON FUNCTION pgwh_internal.renew_usage() IS 'gives the roles of pgwh.grant_usage(), and nobody else, what an update has added';

REVOKE ALL ON SCHEMA pgwh, pgwh_internal FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pgwh, pgwh_internal FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgwh, pgwh_internal FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA pgwh, pgwh_internal FROM PUBLIC;

-- Names can be looked up by every role: pg_dump --inserts reads each table that there is. What may be done with an object is
-- granted for each. Policies show the database's owner, and members of pg_read_all_data, their own.
GRANT USAGE ON SCHEMA pgwh TO PUBLIC;
GRANT SELECT ON pgwh.subscriptions, pgwh.secrets TO pg_database_owner;
GRANT EXECUTE ON FUNCTION pgwh_internal.sees(text) TO pg_database_owner, pg_read_all_data;

-- For exporters.
GRANT EXECUTE ON FUNCTION pgwh.metrics(), pgwh.metric_samples(text) TO pg_monitor;

-- What this script wrote is in such a publication already: a subscriber without these tables would stop at it.
DO $$
DECLARE
    found record;
BEGIN
    SELECT string_agg(p.problem, '; ') AS problems, string_agg(p.next_step, ' ') AS next_steps INTO found FROM pgwh_internal.publication_problems() p;
    IF found.problems IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'logical replication would stop at the tables of pgstream_hooks',
            DETAIL = format('In this database, %s. A subscriber that lacks a published table stops there.', found.problems),
            HINT = format('%s Then create the extension. If all readers pick their tables themselves, as Debezium does, or have the extension: ALTER SYSTEM SET pgwh.allow_all_tables_publications = on; SELECT pg_reload_conf();', found.next_steps);
    END IF;
END $$;

CREATE EVENT TRIGGER pgwh_updated ON ddl_command_end WHEN TAG IN ('ALTER EXTENSION') EXECUTE FUNCTION pgwh_internal.renew_usage();
COMMENT ON EVENT TRIGGER pgwh_updated IS 'gives roles the rights that an update has added';

CREATE EVENT TRIGGER pgwh_publication_changed ON ddl_command_end WHEN TAG IN ('CREATE PUBLICATION', 'ALTER PUBLICATION')
    EXECUTE FUNCTION pgwh_internal.warn_of_publication();
COMMENT ON EVENT TRIGGER pgwh_publication_changed IS 'warns when a publication gets tables of the extension';

-- Last, so that they don't fire for what this script creates. Also for sessions that replicate: rows are captured there, too.
CREATE EVENT TRIGGER pgwh_schema_changed ON ddl_command_end EXECUTE FUNCTION pgwh_internal.note_schema_change();
ALTER EVENT TRIGGER pgwh_schema_changed ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER pgwh_schema_changed IS 'notes what commands create and alter, for webhooks of schema changes';
CREATE EVENT TRIGGER pgwh_schema_dropped ON sql_drop EXECUTE FUNCTION pgwh_internal.note_schema_change();
ALTER EVENT TRIGGER pgwh_schema_dropped ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER pgwh_schema_dropped IS 'notes what commands drop, for webhooks of schema changes';
