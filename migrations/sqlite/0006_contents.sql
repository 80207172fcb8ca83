-- What tells a file's content from others, where it was read, and what a load took out of its table. Null in the rows from before.
-- New rows removed nothing until they say so. SQLite cannot change the check of a column, so the table is made anew.

create table raw_loads_new (
    id              integer primary key autoincrement,
    load_key        text not null unique,
    dataset         text not null,
    source          text not null,
    bytes           bigint,
    status          text not null check (status in ('loading', 'loaded', 'failed', 'unloaded', 'repeated', 'open')),
    records_read    bigint not null default 0,
    rows_loaded     bigint not null default 0,
    rows_rejected   bigint not null default 0,
    records_skipped bigint not null default 0,
    started_at      text not null default (strftime('%Y-%m-%d %H:%M:%f000', 'now')),
    finished_at     text,
    error           text,
    sha256          text check (length(sha256) = 64),
    host            text,
    repeats         bigint,
    rows_removed    bigint default 0
);
insert into raw_loads_new
select id, load_key, dataset, source, bytes, status, records_read, rows_loaded, rows_rejected, records_skipped, started_at,
    finished_at, error, null, null, null, null
from raw_loads;
-- The numbers of rows that were deleted are not used again.
delete from sqlite_sequence where name = 'raw_loads_new';
insert into sqlite_sequence (name, seq) select 'raw_loads_new', seq from sqlite_sequence where name = 'raw_loads';
drop table raw_loads;
-- Otherwise a view of the user on the old table would refuse the new name.
pragma legacy_alter_table = on;
alter table raw_loads_new rename to raw_loads;
pragma legacy_alter_table = off;
create index loads_by_source on raw_loads (dataset, source);
create index loads_by_content on raw_loads (dataset, sha256);

-- The ledger for people: how long each load took, and the first of its records that could not be loaded.
create view raw_load_history as
select l.id, l.load_key, l.dataset, l.source, l.bytes, l.status, l.records_read, l.rows_loaded, l.rows_rejected, l.records_skipped,
    l.started_at, l.finished_at, l.error, l.sha256, l.host, l.repeats, l.rows_removed,
    round(l.seconds, 3) as seconds,
    round(l.records_read / nullif(l.seconds, 0), 1) as records_per_second,
    r.ordinal as first_reject_ordinal, r.reason as first_reject_reason, r.detail as first_reject_detail
from (select *, (julianday(finished_at) - julianday(started_at)) * 86400 as seconds from raw_loads) l
left join raw_rejects r
    on r.rowid = (select rowid from raw_rejects where load_id = l.id order by ordinal limit 1);
