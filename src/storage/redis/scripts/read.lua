-- Reads buckets, together with the point of the log that they reflect.
-- KEYS: meta, log, slots, the buckets. ARGV: birth, the position and mark of a point that the caller has read, how many
-- sessions are enough, '1' to also read leases.
-- Returns the end of the log and its mark, the number of buckets read (-1: the whole partition is empty), the bytes of
-- their sessions and, if leases were requested, the lease of each session (8 bytes, zeros for none). Error: OTHER if
-- that point is not in this log.
if mark_at(tonumber(ARGV[2])) ~= ARGV[3] then
    return redis.error_reply('OTHER the log has another history')
end
if count == 0 then
    return {last, mark, -1, '', ''}
end
local read, found, parts, leases, lease_of = 0, 0, {}, {}, {[''] = string.rep('\0', 8)}
local function lease_at(slot)
    lease_of[slot] = lease_of[slot] or call('HGET', KEYS[3], slot) or lease_of['']
    return lease_of[slot]
end
for i = 4, #KEYS do
    read = read + 1
    if ARGV[5] == '1' then
        local held = call('HGETALL', KEYS[i])
        for n = 1, #held, 2 do
            parts[#parts + 1], leases[#leases + 1] = held[n], lease_at(held[n + 1])
        end
        found = found + #held / 2
    else
        local sessions = call('HKEYS', KEYS[i])
        found = found + #sessions
        parts[read] = table.concat(sessions)
    end
    if found >= tonumber(ARGV[4]) then
        break
    end
end
return {last, mark, read, table.concat(parts), table.concat(leases)}
