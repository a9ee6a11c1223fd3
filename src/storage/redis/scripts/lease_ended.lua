-- Records that leases have ended, because they are closed in every partition. Now anybody may be told.
-- KEYS: meta, leases, deadlines, ended leases, claims. ARGV: birth, for each lease its id and the number of the mark
-- that it was closed for.
-- Returns for each lease 1 if it has ended, 0 if it lives on with its whole ttl because the call that was to end it has
-- failed, 2 if it was marked again meanwhile.
call('HDEL', meta, '')
local answers = {}
for i = 2, #ARGV, 2 do
    local lease, answer = ARGV[i], 1
    local known = call('HGET', KEYS[4], lease)
    if known then
        local state, number, good, ttl, owner = string.match(known, '^(..) (%d+) (%d+) (%d+) (.*)$')
        if number ~= ARGV[i + 1] then
            answer = 2
        elseif string.sub(state, 1, 1) == 'm' then
            if tonumber(good) > 0 and now >= tonumber(good) then
                call('HSET', KEYS[2], lease, ttl .. ' ' .. owner)
                call('ZADD', KEYS[3], text(lease_now + 1 + ttl), lease)
                call('HDEL', KEYS[4], lease)
                call('ZREM', KEYS[5], lease)
                call('HINCRBY', meta, 'live', 1)
                answer = 0
            else
                call('HSET', KEYS[4], lease, 'c' .. string.sub(known, 2))
            end
        end
    elseif call('HEXISTS', KEYS[2], lease) == 1 then
        answer = 0
    end
    answers[#answers + 1] = answer
end
return answers
