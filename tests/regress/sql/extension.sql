-- What CREATE EXTENSION makes, and that DROP EXTENSION leaves nothing.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS pgstream_hooks;
CREATE EXTENSION pgstream_hooks;
RESET client_min_messages;

-- Every object explains itself.
SELECT c.oid::regclass AS without_comment FROM pg_class c
WHERE c.relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND c.relkind IN ('r', 'v') AND obj_description(c.oid, 'pg_class') IS NULL;
SELECT a.attrelid::regclass AS without_comment, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND c.relkind IN ('r', 'v') AND a.attnum > 0
  AND col_description(c.oid, a.attnum) IS NULL;
SELECT p.oid::regprocedure AS without_comment FROM pg_proc p
WHERE p.pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT name AS without_description FROM pg_settings WHERE name LIKE 'pgwh.%' AND (short_desc = '' OR extra_desc = '');

SELECT evtname AS without_comment FROM pg_event_trigger WHERE obj_description(oid, 'pg_event_trigger') IS NULL;

-- Nobody else may do anything with it.
SELECT p.oid::regprocedure AS open_to_all FROM pg_proc p
WHERE p.pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND has_function_privilege('public', p.oid, 'EXECUTE');
SELECT c.oid::regclass AS open_to_all FROM pg_class c
WHERE c.relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND c.relkind IN ('r', 'v')
  AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE');
SELECT has_schema_privilege('public', 'pgwh', 'CREATE') OR has_schema_privilege('public', 'pgwh_internal', 'USAGE') AS open_to_all;

-- Publications for all tables, replication and pg_upgrade ask this of tables.
SELECT c.oid::regclass AS without_key FROM pg_class c
WHERE c.relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND c.relkind = 'r'
  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary);

-- The functions that API.md promises, as they are called.
\pset format unaligned
SELECT proname || ' returns ' || pg_get_function_result(oid) || E':\n    '
    || replace(pg_get_function_identity_arguments(oid), ', ', E'\n    ') AS functions FROM pg_proc
WHERE pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND proname IN ('subscribe', 'unsubscribe', 'secret', 'status', 'health', 'wait', 'emit', 'annotate')
ORDER BY proname;

SELECT name, setting, unit, context FROM pg_settings WHERE name LIKE 'pgwh.%' AND name <> 'pgwh.allowed_networks' ORDER BY 1;
\pset format aligned
SET pgwh.enabled = off;
SET pgwh.nonsense = 1;

DROP EXTENSION pgstream_hooks;
SELECT nspname FROM pg_namespace WHERE nspname IN ('pgwh', 'pgwh_internal');
CREATE EXTENSION pgstream_hooks;
