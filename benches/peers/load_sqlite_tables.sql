-- Creates the tables of load_sqlite.sql, without indexes.
.output /dev/null
pragma journal_mode = wal;
.output
create table events (
    id text not null, event_type text, username text, user_email text, user_type text,
    organization_name text, plan_name text, received_at text not null
);
create table events_delta (
    id text not null, event_type text, username text, user_email text, user_type text,
    organization_name text, plan_name text, received_at text not null
);
create table events_by_date (
    date text not null, total_events integer not null, unique_events integer not null, unique_users integer not null
);
create table events_by_date_organization_name (
    date text not null, organization_name text,
    total_events integer not null, unique_events integer not null, unique_users integer not null
);
create table events_by_date_user_type (
    date text not null, user_type text,
    total_events integer not null, unique_events integer not null, unique_users integer not null
);
