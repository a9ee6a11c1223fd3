-- Notes that leases which are ending are closed in every partition: they have ended, and anybody may be told.
-- KEYS: meta, leases, deadlines, ended leases, claims. ARGV: birth, the leases.
-- Gives 1 for each lease that has ended, and 0 for each that lives on, with its whole ttl, because the call that was to end it has failed.
call('HDEL', meta, '')
local answers = {}
for i = 2, #ARGV do
    local lease = ARGV[i]
    local known = call('HGET', KEYS[4], lease) or 'c'
    local reason, good, ttl, owner = string.match(known, '^m(.) (%d+) (%d+) (.*)$')
    answers[i - 1] = 1
    if reason and tonumber(good) > 0 and now > tonumber(good) then
        call('HSET', KEYS[2], lease, ttl .. ' ' .. owner)
        call('ZADD', KEYS[3], text(lease_now + 1 + ttl), lease)
        call('HDEL', KEYS[4], lease)
        call('ZREM', KEYS[5], lease)
        call('HINCRBY', meta, 'live', 1)
        answers[i - 1] = 0
    elseif reason then
        call('HSET', KEYS[4], lease, 'c' .. string.sub(known, 2))
    end
end
return answers
