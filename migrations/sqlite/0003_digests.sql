-- What tells a chunk's records from others, so that a chunk that comes again with other records is noticed: XXH3, 128 bits, of
-- their own bytes. Null in the lines from before.
alter table raw_batches add column digest blob;
