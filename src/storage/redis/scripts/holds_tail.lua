-- Refuses a caller whose tail has read what is not in this log. ARGV[2] and ARGV[3] are the position and the mark up to
-- which it has read.
-- Errors: BEHIND if the log ends before that position, LOST if it has another mark there.
local read_up_to = tonumber(ARGV[2])
if read_up_to > last then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
-- If that position was trimmed, nothing is known of it, and there is nothing before it to return.
if (mark_at(read_up_to) or ARGV[3]) ~= ARGV[3] then
    return redis.error_reply('LOST the log has another history')
end
