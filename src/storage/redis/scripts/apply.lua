-- Creates, destroys and looks for sessions: a step each, in order.
-- KEYS: meta, log, leases, for each lease its set of buckets, for each step its bucket.
-- ARGV: registry id, number by chance, retained changes, most sessions (-1: the partition's quota), number of leases, the
-- leases, the steps. A step is a letter and the session's 16 bytes; under a lease (C, D) also the lease's place as one byte
-- and the bit of the bucket in its set.
-- Gives a letter for each step: 0 nothing changed or is there, 1 it did or is, L no such lease, F full.
local leases = tonumber(ARGV[5])
local slots = {}
for i = 1, leases do
    slots[i] = redis.call('HGET', KEYS[3], ARGV[5 + i])
end
local most = tonumber(ARGV[4])
if most < 0 then
    most = tonumber(redis.call('HGET', KEYS[1], 'quota')) or 0
end
-- Once a session had no room, none has: a batch must not go on past it.
local is_full = false
local answers = {}
for i = 1, #ARGV - 5 - leases do
    local step, bucket = ARGV[5 + leases + i], KEYS[3 + leases + i]
    local letter, session = string.sub(step, 1, 1), string.sub(step, 2, 17)
    local answer = '0'
    if letter == 'h' then
        answer = redis.call('HEXISTS', bucket, session) == 1 and '1' or '0'
    elseif letter == 'c' then
        if is_full or count >= most then
            if redis.call('HEXISTS', bucket, session) == 0 then
                answer, is_full = 'F', true
            end
        elseif redis.call('HSETNX', bucket, session, '') == 1 then
            answer, count = '1', count + 1
            append('c', session)
        end
    elseif letter == 'd' then
        if redis.call('HDEL', bucket, session) == 1 then
            answer, count = '1', count - 1
            append('r', session)
        end
    else
        local lease = string.byte(step, 18)
        local slot = slots[lease]
        if letter == 'D' then
            if slot and redis.call('HGET', bucket, session) == slot then
                redis.call('HDEL', bucket, session)
                answer, count = '1', count - 1
                append('r', session)
            end
        elseif not slot then
            answer = 'L'
        else
            local held = redis.call('HGET', bucket, session)
            if not held and (is_full or count >= most) then
                answer, is_full = 'F', true
            elseif held ~= slot then
                redis.call('HSET', bucket, session, slot)
                redis.call('SETBIT', KEYS[3 + lease], string.sub(step, 19), 1)
                if not held then
                    answer, count = '1', count + 1
                    append('c', session)
                end
            end
        end
    end
    answers[i] = answer
end
commit()
return table.concat(answers)
