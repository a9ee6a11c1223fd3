-- The clock that leases go by, in the first partition. Only looks (lease_look) move it on, each by 500 ms at most: so it stands still while
-- nobody can keep a lease alive, and a clock of Redis that is set has no effect on it.
local LONGEST_LOOK = 500
local clock = call('HMGET', meta, 'lease_time', 'looked')
local since_look = now - clock[2]
-- No earlier than the clock is, so that no lease ends too early.
local lease_now = clock[1] + ((since_look >= 0 and since_look <= LONGEST_LOOK) and since_look or LONGEST_LOOK)
