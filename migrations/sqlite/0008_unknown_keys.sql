-- Keys of records that no column took when they came for the first time. Bounded per dataset.
create table dataloader_unknown_keys (
    dataset text not null,
    -- As `from` names it in dataloader.toml.
    place text not null,
    -- A type that takes the first value.
    type text not null,
    -- The first record that had it.
    load_id bigint not null,
    ordinal bigint not null,
    primary key (dataset, place)
);
