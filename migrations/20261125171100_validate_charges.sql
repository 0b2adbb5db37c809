-- What was charged before is of its hold as well. In a transaction of its own: the one before has
-- locked what this would take its time to read.
alter table charges validate constraint charge_is_of_its_hold;
