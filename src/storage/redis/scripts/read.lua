-- Reads buckets together with the place in the log that they reflect.
-- KEYS: meta, log, the buckets. ARGV: birth, the position and mark of a place that the caller has read, how many
-- sessions are enough.
-- Returns the end of the log and its mark, how many buckets were read (-1: the whole partition is empty), and the bytes
-- of their sessions. Error: OTHER if that place is not in this log.
if mark_at(tonumber(ARGV[2])) ~= ARGV[3] then
    return redis.error_reply('OTHER the log has another history')
end
if count == 0 then
    return {last, mark, -1, ''}
end
local read, found, parts = 0, 0, {}
for i = 3, #KEYS do
    local sessions = call('HKEYS', KEYS[i])
    read, found = read + 1, found + #sessions
    parts[read] = table.concat(sessions)
    if found >= tonumber(ARGV[4]) then
        break
    end
end
return {last, mark, read, table.concat(parts)}
