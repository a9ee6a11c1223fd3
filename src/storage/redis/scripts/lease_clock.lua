-- The clocks of leases, in the first partition.

-- Deadlines go by a clock that only looks (lease_look) move, each by 350 ms at most. So it stands still while nobody
-- can keep a lease alive. Deadlines count from the latest time that it may be, so that no lease ends early.
local LONGEST_LOOK = 350
local clocks = call('HMGET', meta, 'lease_time', 'linger_time', 'look_time')
local lease_time = tonumber(clocks[1])
local lease_now = lease_time + LONGEST_LOOK

-- Lingers go by a clock that does not stand still. It follows the partition's clock, and looks take back what somebody
-- has set Redis' clock forward.
local linger_now = clocks[2] + now - clocks[3]

-- A lease's record is its ttl and its owner. If the lease lingers, '~' and the time of its end come first. KEYS[3] has
-- the deadlines of all leases. Those that lingers end at are negative there, because they are times of another clock.
local LINGERS = 2 ^ 52

-- Gives a lease its whole ttl from now on or, if it lingers, its end.
local function set_deadline(lease, record)
    local over, ttl = string.match(record, '^~(%d+)'), string.match(record, '^%d+')
    call('ZADD', KEYS[3], text(over and over - LINGERS or lease_now + 1 + (ttl or 0)), lease)
end

-- Returns a deadline with what the lease was given after an outage, if it was kept alive before that.
local function extended(deadline, ttl, revived, grace)
    if deadline - 1 - LONGEST_LOOK - ttl < revived then
        return math.max(deadline, revived + 1 + math.max(ttl, grace))
    end
    return deadline
end
