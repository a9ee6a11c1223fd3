-- The clocks of leases, in the first partition.

-- Deadlines are times of a clock that only looks (lease_look) advance, each by at most 350 ms. It therefore stops while
-- no lease can be kept alive. A deadline is counted from the latest possible current time, so that no lease ends early.
local LONGEST_LOOK = 350
local clocks = call('HMGET', meta, 'lease_time', 'linger_time', 'look_time')
local lease_time = tonumber(clocks[1])
local lease_now = lease_time + LONGEST_LOOK

-- The ends of lingers are times of a clock that never stops. It follows the partition's clock. If somebody sets Redis'
-- clock forward, looks undo that jump.
local linger_now = clocks[2] + now - clocks[3]

-- A lease's record holds its ttl and its owner. If the lease lingers, '~' and the time of its end come first. KEYS[3]
-- has the deadlines of all leases. The deadline of a lingering lease is negative, because it is a time of the other
-- clock.
local LINGERS = 2 ^ 52

-- Sets the deadline of a lease: its whole ttl from now on or, if it lingers, the end of its linger.
local function set_deadline(lease, record)
    local over, ttl = string.match(record, '^~(%d+)'), string.match(record, '^%d+')
    call('ZADD', KEYS[3], text(over and over - LINGERS or lease_now + 1 + (ttl or 0)), lease)
end

-- Returns a deadline with the extension after an outage, which a lease gets if it was last kept alive before the
-- outage.
local function extended(deadline, ttl, revived, grace)
    if deadline - 1 - LONGEST_LOOK - ttl < revived then
        return math.max(deadline, revived + 1 + math.max(ttl, grace))
    end
    return deadline
end
