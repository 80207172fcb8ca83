-- Messages that came again and were taken alone, how often, until they have an answer: who ends the process again and again is set
-- aside.

create table dataloader.attempts (
    message  bytea primary key,
    attempts bigint not null
);
