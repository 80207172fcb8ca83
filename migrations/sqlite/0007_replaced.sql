-- The key of the latest batch load that replaced all rows of a dataset whose dropped records replace older ones: records of earlier
-- drops that come later are outdated.
alter table dataloader_datasets add column replaced_by text;
