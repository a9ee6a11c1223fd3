-- Records that leases have ended or linger, after they were closed in all partitions. From then on, it may be reported.
-- KEYS: meta, leases, deadlines, ended leases, claims, ids. ARGV: birth, for each lease its id and the number of the
-- mark that it was closed for.
-- Returns for each lease 1 if it has ended, 0 if it lingers or if it is as before with its whole ttl (because the
-- deadline for recording the end has passed, so the call has failed), 2 if it was marked again meanwhile.
call('HDEL', meta, '')
local answers, leases, ended, gone = {}, {}, {}, {}
for i = 2, #ARGV, 2 do
    leases[#leases + 1] = ARGV[i]
end
for i, known in ipairs(call('HMGET', KEYS[4], unpack(leases))) do
    local lease, answer = leases[i], 1
    if known then
        local state, number, good, over, record = string.match(known, '^(..) (%d+) (%d+) (%d+) (.*)$')
        if number ~= ARGV[2 * i + 1] then
            answer = 2
        elseif string.sub(state, 1, 1) == 'm' then
            local has_failed = tonumber(good) > 0 and now >= tonumber(good)
            if has_failed or over ~= '0' then
                record = has_failed and record or '~' .. over .. ' ' .. (string.match(record, '^~%d+ (.*)$') or record)
                call('HSET', KEYS[2], lease, record)
                set_deadline(lease, record)
                list_lease(KEYS[6], lease)
                call('HDEL', KEYS[4], lease)
                call('ZREM', KEYS[5], lease)
                call('HINCRBY', meta, 'live', 1)
                answer = 0
            else
                ended[#ended + 1], ended[#ended + 2] = lease, 'c' .. string.sub(known, 2)
                gone[#gone + 1] = lease
            end
        end
    elseif call('HEXISTS', KEYS[2], lease) == 1 then
        answer = 0
    end
    answers[#answers + 1] = answer
end
if #ended > 0 then
    call('HSET', KEYS[4], unpack(ended))
    call('ZREM', KEYS[6], unpack(gone))
end
return answers
