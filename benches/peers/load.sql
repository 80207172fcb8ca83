-- The steps of `dataloader load` as a psql script that reads a prepared CSV from standard input: fill the delta table, upsert
-- it by key, model the master table per day.
--
-- The script omits whatever would make it slower: it has no ledger, no rejects and no list of changed days. An event that
-- occurs twice with different organisations, user types or users counts as two unique events.
set work_mem = '256MB';
set jit = off;

begin;

truncate events_delta;
\copy events_delta from pstdin (format csv)
analyze events_delta;

-- `=` allows a hash join, `is not distinct from` does not. Keys with a null are therefore deleted separately.
delete from events e where exists (
    select from events_delta d where d.id = e.id and d.event_type = e.event_type and d.received_at = e.received_at
);
delete from events e where event_type is null and exists (
    select from events_delta d where d.id = e.id and d.event_type is null and d.received_at = e.received_at
);
insert into events select * from events_delta;

\ir model.sql

commit;
