-- What messages may say, and what the history of the schema shows.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS pgstream_hooks;
CREATE EXTENSION pgstream_hooks;
RESET client_min_messages;

SELECT pgwh.emit('order.paid', '{"id": 7}');
SELECT pgwh.emit(type => 'order.paid', payload => NULL, key => '7');
SELECT pgwh.annotate('{"user": 42}');
SELECT pgwh.annotate(NULL);

SELECT pgwh.emit(NULL, '1');
SELECT pgwh.emit(' ', '1');
SELECT pgwh.emit(repeat('x', 201), '1');
SELECT pgwh.emit('m', '1', key => repeat('x', 9000));
SELECT pgwh.emit('m', to_jsonb(repeat('x', 9000000)));
SELECT pgwh.annotate(to_jsonb(repeat('x', 20000)));

CREATE TABLE noted (id int PRIMARY KEY, label text DEFAULT 'a');
ALTER TABLE noted RENAME label TO title;
CREATE TEMP TABLE not_noted (id int);
DROP TABLE noted;
SELECT command_tag, command, objects->0->>'identity' AS identity, objects->0->'columns'->1->>'name' AS second_column
FROM pgwh.schema_history;
