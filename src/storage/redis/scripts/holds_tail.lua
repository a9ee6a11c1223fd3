-- Refuses a caller whose tail has read what is not in this log: ARGV[2] and ARGV[3] are the position and the mark up to which it has.
-- BEHIND when the log ends before it, LOST when it has another mark there.
local read_up_to = tonumber(ARGV[2])
if read_up_to > last then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
-- Nothing can be said of what has been trimmed. Nor is there anything before it that could be told.
if (mark_at(read_up_to) or ARGV[3]) ~= ARGV[3] then
    return redis.error_reply('LOST the log has another history')
end
