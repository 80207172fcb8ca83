-- What tells a file's content from others, where it was read, and what a load took out of its table. Null in the rows from before.
-- New rows removed nothing until they say so.

alter table raw.loads
    add column sha256       text check (length(sha256) = 64),
    add column host         text,
    add column repeats      bigint,
    add column rows_removed bigint,
    drop constraint loads_status_check,
    add constraint loads_status_check
        check (status in ('loading', 'loaded', 'failed', 'unloaded', 'repeated', 'open'));
alter table raw.loads alter column rows_removed set default 0;
create index loads_by_content on raw.loads (dataset, sha256);

-- The ledger for people: how long each load took, and the first of its records that could not be loaded.
create view raw.load_history as
select l.id, l.load_key, l.dataset, l.source, l.bytes, l.status, l.records_read, l.rows_loaded, l.rows_rejected, l.records_skipped,
    l.started_at, l.finished_at, l.error, l.sha256, l.host, l.repeats, l.rows_removed,
    round(t.seconds, 3)::double precision as seconds,
    round(l.records_read / nullif(t.seconds, 0), 1)::double precision as records_per_second,
    r.ordinal as first_reject_ordinal, r.reason as first_reject_reason, r.detail as first_reject_detail
from raw.loads l
cross join lateral (select extract(epoch from l.finished_at - l.started_at)::numeric as seconds) t
left join lateral (
    select ordinal, reason, detail from raw.rejects where load_id = l.id order by ordinal limit 1
) r on true;
