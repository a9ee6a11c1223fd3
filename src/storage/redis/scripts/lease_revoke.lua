-- Marks a lease as ending, either now or after a linger. KEYS: see lease_end.lua.
-- ARGV: birth, the script's deadline, lease, the duration of the caller's claim in ms, a random number, the deadline
-- for recording the end, the linger in ms (0 for none).
-- Returns 1 and the lease's record, 0 and its record if it is already ending, 2 and '' if it already lingers (its end
-- is then brought forward if necessary), -1 and '' if it is gone.
local problem = late(ARGV[2])
if problem then
    return problem
end
local ended = call('HGET', KEYS[4], ARGV[3])
if ended then
    return string.sub(ended, 1, 1) == 'm' and {0, ended} or {-1, ''}
end
local known = call('HGET', KEYS[2], ARGV[3])
if not known then
    return {-1, ''}
end
call('HDEL', meta, '')
local lingers, over = tonumber(ARGV[7]) > 0, text(linger_now + ARGV[7])
local before, record = string.match(known, '^~(%d+) (.*)$')
if before and lingers then
    if tonumber(over) < tonumber(before) then
        known = '~' .. over .. ' ' .. record
        call('HSET', KEYS[2], ARGV[3], known)
        set_deadline(ARGV[3], known)
    end
    return {2, ''}
end
return {1, end_lease(ARGV[3], 'v', ARGV[4], ARGV[5], ARGV[6], lingers and over or '0')}
