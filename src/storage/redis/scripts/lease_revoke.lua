-- Marks a lease as ending. ARGV: birth, until when the script is good, lease, ms for which the caller has it, until when it may
-- be noted as ended.
-- Gives what is known of it, or '' when it is gone; 'm' when somebody else is ending it.
if now > tonumber(ARGV[2]) then
    return redis.error_reply('LATE ' .. text(now))
end
local ended = call('HGET', KEYS[4], ARGV[3])
if ended then
    return string.sub(ended, 1, 1) == 'm' and 'm' or ''
end
if call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
    return ''
end
call('HDEL', meta, '')
local known = end_lease(ARGV[3], 'v', ARGV[4], ARGV[5])
return known
