-- Closes leases that end or begin to linger: from then on, no session of this partition can come under them.
-- KEYS: meta, attached leases, closed leases, sessions held by slot. ARGV: birth, a random number for this closing, '~'
-- for each lease that begins to linger and '.' for each that ends, the leases (without leases, only the number
-- changes). A lease that is already closed stays closed, even with '~', because this script may be executed late.
-- Returns the number of sessions under each lease here.
call('HSET', meta, 'closing', ARGV[2])
if #ARGV == 3 then
    return {}
end
local attached = call('HMGET', KEYS[2], unpack(ARGV, 4))
local held, leases, closed, lingering = {}, {}, {}, {}
for i, slot in ipairs(call('HMGET', KEYS[3], unpack(ARGV, 4))) do
    local lease = ARGV[3 + i]
    if attached[i] then
        slot = string.match(attached[i], '%d+')
        if string.sub(ARGV[3], i, i) == '~' then
            lingering[#lingering + 1], lingering[#lingering + 2] = lease, '~' .. slot
        else
            leases[#leases + 1] = lease
            closed[#closed + 1], closed[#closed + 2] = lease, slot
        end
    end
    -- The count is negative only if somebody else has written to the counts.
    held[i] = slot and math.max(0, tonumber(call('HGET', KEYS[4], slot) or 1)) or 0
end
if #leases > 0 then
    call('HSET', KEYS[3], unpack(closed))
    call('HDEL', KEYS[2], unpack(leases))
end
if #lingering > 0 then
    call('HSET', KEYS[2], unpack(lingering))
end
return held
