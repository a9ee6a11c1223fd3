-- Rejects a caller whose tail has read changes that are not in this log. ARGV[2] and ARGV[3] are the position and the
-- mark up to which the tail has read.
-- Errors: BEHIND if the log ends before that position, LOST if it has another mark there.
local read_up_to = tonumber(ARGV[2])
if read_up_to > last then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
-- If the log was trimmed past that position, its mark is unknown, and the log has no earlier changes to return.
if (mark_at(read_up_to) or ARGV[3]) ~= ARGV[3] then
    return redis.error_reply('LOST the log has another history')
end
