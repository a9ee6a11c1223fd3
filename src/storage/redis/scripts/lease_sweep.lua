-- Destroys sessions under a closed lease.
-- KEYS: meta, log, closed leases, the buckets. ARGV: registry id, number by chance, retained changes, lease, slot, letter of the
-- events, how many sessions are enough.
-- Gives how many were destroyed and how many buckets are done; all of them when somebody else has swept the lease.
if redis.call('HGET', KEYS[3], ARGV[4]) ~= ARGV[5] then
    return {0, #KEYS - 3}
end
local destroyed, done, enough = 0, 0, tonumber(ARGV[7])
for i = 4, #KEYS do
    local held, is_whole = redis.call('HGETALL', KEYS[i]), true
    for n = 1, #held, 2 do
        if held[n + 1] == ARGV[5] then
            if destroyed >= enough then
                is_whole = false
                break
            end
            redis.call('HDEL', KEYS[i], held[n])
            destroyed, count = destroyed + 1, count - 1
            append(ARGV[6], held[n])
        end
    end
    if not is_whole then
        break
    end
    done = done + 1
end
commit()
return {destroyed, done}
