-- What is fixed: the ledger of loads, the rejects, and what the program keeps for itself.
-- The datasets' own tables are made from their definitions.

create table raw_loads (
    id              integer primary key autoincrement,
    load_key        text not null unique,
    dataset         text not null,
    source          text not null,
    bytes           bigint,
    status          text not null check (status in ('loading', 'loaded', 'failed', 'open')),
    records_read    bigint not null default 0,
    rows_loaded     bigint not null default 0,
    rows_rejected   bigint not null default 0,
    records_skipped bigint not null default 0,
    started_at      text not null default (strftime('%Y-%m-%d %H:%M:%f000', 'now')),
    finished_at     text,
    error           text
);
create index loads_by_source on raw_loads (dataset, source);

-- One line per chunk: that it is here is what makes a chunk loaded.
create table raw_batches (
    load_id       bigint not null,
    seq           bigint not null,
    first_ordinal bigint not null,
    records       bigint not null,
    primary key (load_id, seq)
) without rowid;

create table raw_rejects (
    load_id     bigint not null,
    dataset     text not null,
    ordinal     bigint not null,
    byte_offset bigint not null,
    reason      text not null,
    detail      text not null,
    record      blob not null,
    rejected_at text not null default (strftime('%Y-%m-%d %H:%M:%f000', 'now'))
);
create index rejects_by_load on raw_rejects (load_id, ordinal);

-- The definition that each dataset's tables were made for.
create table dataloader_datasets (
    name       text primary key,
    definition text not null
);

-- Days whose modelled rows are behind the raw rows. Writers append marks; a refresh deletes only those it has read.
create table dataloader_changed_days (
    dataset text not null,
    day     text not null
);
create index changed_days_by_dataset on dataloader_changed_days (dataset);
