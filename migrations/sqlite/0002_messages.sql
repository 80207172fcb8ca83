-- Messages of other programs that are loaded: the same message_id again is not loaded again.

create table dataloader_messages (
    dataset    text not null,
    app_id     text not null,
    message_id text not null,
    digest     blob not null,
    primary key (dataset, app_id, message_id)
) without rowid;
