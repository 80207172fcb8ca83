-- A refresh computes while others write, and stores what it has computed only if no other refresh has stored meanwhile: that is
-- what this counts. PostgreSQL has locks for it.
alter table dataloader_datasets add column refreshes bigint not null default 0;

-- It deletes the marks that it has read, by a number that stays: VACUUM may number the rows of a table without a key anew.
create table dataloader_marks (
    id      integer primary key,
    dataset text not null,
    day     text not null
);
insert into dataloader_marks (dataset, day) select dataset, day from dataloader_changed_days;
drop table dataloader_changed_days;
alter table dataloader_marks rename to dataloader_changed_days;
create index changed_days_by_dataset on dataloader_changed_days (dataset);
