-- Creates the tables of load.sql, without indexes.
create table events (
    id text not null, event_type text, username text, user_email text, user_type text,
    organization_name text, plan_name text, received_at timestamp not null
);
create unlogged table events_delta (like events);
create table events_by_date (
    date date not null, total_events bigint not null, unique_events bigint not null, unique_users bigint not null
);
create table events_by_date_organization_name (
    date date not null, organization_name text,
    total_events bigint not null, unique_events bigint not null, unique_users bigint not null
);
create table events_by_date_user_type (
    date date not null, user_type text,
    total_events bigint not null, unique_events bigint not null, unique_users bigint not null
);
