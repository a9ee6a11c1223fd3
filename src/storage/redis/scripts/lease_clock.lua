-- The clock of leases, in the first partition. Only looks (lease_look) move it, each by 350 ms at most, so it stands
-- still while nobody can keep a lease alive. Deadlines count from the latest time that it may be, so that no lease ends
-- early.
local LONGEST_LOOK = 350
local lease_time = tonumber(call('HGET', meta, 'lease_time'))
local lease_now = lease_time + LONGEST_LOOK
