-- The steps of `dataloader load` on SQLite, as a sqlite3 script that reads a prepared `events.csv` in the working directory.
-- Like load.sql, it omits whatever would make it slower.
pragma synchronous = normal;
pragma cache_size = -262144;
pragma temp_store = memory;

begin immediate;

delete from events_delta;
.import --csv events.csv events_delta

delete from events where exists (
    select 1 from events_delta d
    where d.id = events.id and d.event_type = coalesce(events.event_type, '') and d.received_at = events.received_at
);
-- `.import` turns an empty field into an empty string.
insert into events
select id, nullif(event_type, ''), nullif(username, ''), nullif(user_email, ''), nullif(user_type, ''),
       nullif(organization_name, ''), nullif(plan_name, ''), received_at
from events_delta;

-- One row per event; the modelled tables are computed from it.
create temporary table keyed as
select substr(received_at, 1, 10) as date, organization_name, user_type, username, count(*) as total
from events
group by date, id, event_type, received_at, organization_name, user_type, username;

delete from events_by_date;
delete from events_by_date_organization_name;
delete from events_by_date_user_type;
insert into events_by_date
select date, sum(total), count(*), count(distinct username) from keyed group by date;
insert into events_by_date_organization_name
select date, organization_name, sum(total), count(*), count(distinct username) from keyed group by date, organization_name;
insert into events_by_date_user_type
select date, user_type, sum(total), count(*), count(distinct username) from keyed group by date, user_type;

commit;
