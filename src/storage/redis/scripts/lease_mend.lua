-- Makes leases, their deadlines and their ids consistent after one of these keys was lost. A lease without a deadline
-- gets its whole ttl from now on. A lease that has only a deadline is ended.
-- KEYS: meta, leases, deadlines, ended leases, claims, ids. ARGV: birth, the key to scan ('leases' or 'deadlines'; at
-- the end 'counts'), the cursor in it.
-- Returns the next cursor.
call('HDEL', meta, '')
if ARGV[2] == 'leases' then
    local found = call('HSCAN', KEYS[2], ARGV[3], 'COUNT', 512)
    for i = 1, #found[2], 2 do
        if not call('ZSCORE', KEYS[3], found[2][i]) then
            set_deadline(found[2][i], found[2][i + 1])
        end
        list_lease(KEYS[6], found[2][i])
    end
    return found[1]
elseif ARGV[2] == 'deadlines' then
    local found = call('ZSCAN', KEYS[3], ARGV[3], 'COUNT', 512)
    for i = 1, #found[2], 2 do
        local lease = found[2][i]
        if call('HEXISTS', KEYS[2], lease) == 0 then
            if call('HSETNX', KEYS[4], lease, 'mx 0 0 0 0 ') == 1 then
                call('ZADD', KEYS[5], 0, lease)
            end
            call('ZREM', KEYS[3], lease)
        end
    end
    return found[1]
end
call('HSET', meta, 'live', text(call('HLEN', KEYS[2])))
return '0'
