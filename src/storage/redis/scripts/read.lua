-- Reads buckets at once with the end of the log that they reflect.
-- KEYS: meta, the buckets. ARGV: registry id, how many sessions are enough.
-- Gives the end of the log, how many buckets were read (-1: the whole partition is empty), and their sessions' bytes.
local head = redis.call('HMGET', KEYS[1], 'end', 'count')
if tonumber(head[2]) == 0 then
    return {head[1], -1, ''}
end
local read, found, parts = 0, 0, {}
for i = 2, #KEYS do
    local sessions = redis.call('HKEYS', KEYS[i])
    read, found = read + 1, found + #sessions
    parts[read] = table.concat(sessions)
    if found >= tonumber(ARGV[2]) then
        break
    end
end
return {head[1], read, table.concat(parts)}
