-- Makes the keys of a partition's leases consistent after one of them was lost.
-- KEYS: meta, attached leases, closed leases, slots, sessions held by slot. ARGV: birth, the key to scan ('attached',
-- 'closed' or 'slots'; at the end 'counts'), the cursor in it.
-- Returns the next cursor.
call('HDEL', meta, '')
if ARGV[2] == 'counts' then
    call('HSET', meta, 'leases', text(call('HLEN', KEYS[4])))
    return '0'
end
local from = ({attached = KEYS[2], closed = KEYS[3], slots = KEYS[4]})[ARGV[2]]
local found = call('HSCAN', from, ARGV[3], 'COUNT', 512)
for i = 1, #found[2], 2 do
    local name, value = found[2][i], found[2][i + 1]
    if ARGV[2] == 'slots' then
        if call('HEXISTS', KEYS[2], value) + call('HEXISTS', KEYS[3], value) == 0 then
            -- As closed, so that no session comes under the lease before the first partition is asked about it.
            call('HSET', KEYS[3], value, name)
        end
        -- The sessions are not counted again, so sweeps must no longer rely on the counts.
        if call('HSETNX', KEYS[5], name, 0) == 1 then
            call('HSET', meta, 'uncounted', 1)
        end
    else
        call('HSET', KEYS[4], string.match(value, '%d+'), name)
    end
end
return found[1]
