-- Creates and destroys sessions: a step each, in order.
-- KEYS: meta, log, leases attached here, slots, sessions held by slot, for each lease its set of buckets, for each step its
-- bucket.
-- ARGV: birth, until when the script is good, the position that the caller has read up to, retained changes, most sessions
-- (-1: the partition's quota), a random mark, the leases (8 bytes each), '1' when all steps create without a lease, the steps (a letter and the
-- session's 16 bytes each), the leases of the steps (a byte each: the number of the lease, or 0), where their buckets are in the partition
-- (4 bytes each), how many buckets share a bit of a lease's set.
-- A step creates ('c', or 'C' under a lease) or destroys ('d', or 'D' only under the lease).
-- Gives the time, the end of the log, and a letter for each step: 0 nothing changed, 1 it did, L the lease is not attached here, F the
-- partition is full, M there is no memory for it. LATE or BEHIND, and nothing changed, when the script is no longer good, or
-- this Redis does not have what the caller has read.
local problem = late(ARGV[2])
if problem then
    return problem
end
if last < tonumber(ARGV[3]) then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
local most, leases, steps, places, offsets = tonumber(ARGV[5]), ARGV[7], ARGV[9], ARGV[10], ARGV[11]
local sub, byte, keys = string.sub, string.byte, KEYS
local lease_count, step_count = #leases / 8, #steps / 17
local function session_of(step)
    return sub(steps, step * 17 - 15, step * 17)
end
local slot_of = {}
for i = 1, lease_count do
    slot_of[i] = call('HGET', keys[3], sub(leases, i * 8 - 7, i * 8))
end
if most < 0 then
    most = tonumber(call('HGET', meta, 'quota')) or 0
end

-- Creates are refused without memory, and destroys are not.
local refused = type(pcall('HSET', meta, 'time', text(now), 'wall', text(wall))) == 'table'
-- An undo needs the right to do this. Redis that refuses all changes ends the script here.
call('HDEL', meta, '')
if refused then
    store_clock()
end

local answers, more = {}, 0
-- The changes for the log, in parts.
local parts, part_count, logged = {}, 0, 0
local function log(letter, session, lease)
    parts[part_count + 1], parts[part_count + 2], parts[part_count + 3] = letter, session, lease
    part_count, logged = part_count + 3, logged + 1
end
-- The steps that changed something, and what they found.
local changed, found, n = {}, {}, 0
local function undo(problem)
    for i = n, 1, -1 do
        local step = changed[i]
        local bucket, session = keys[5 + lease_count + step], session_of(step)
        if found[i] then
            call('HSET', bucket, session, found[i])
        else
            call('HDEL', bucket, session)
        end
    end
    return problem
end

-- Once a session had no room, none has: a batch must not go on past it.
local full = false

-- A lease's set of buckets holds their numbers as long as it has few, and then bits that may each stand for several: bits take less
-- memory, but whoever ends a small lease must not look for its sessions in thousands of buckets.
local FEW = 256
-- How many numbers a set holds; false where it holds bits.
local a_bit, size_of = tonumber(ARGV[12]), {}
local function as_bits(numbers)
    local bytes, last_byte = {}, 0
    for _, number in ipairs(numbers) do
        local place = math.floor(number / a_bit)
        -- Redis counts bits from the highest.
        local at, value = math.floor(place / 8), 2 ^ (7 - place % 8)
        local others = bytes[at] or 0
        if math.floor(others / value) % 2 == 0 then
            bytes[at] = others + value
        end
        last_byte = math.max(last_byte, at)
    end
    local chars = {}
    for at = 0, last_byte do
        chars[at + 1] = string.char(bytes[at] or 0)
    end
    return table.concat(chars)
end
-- Adds the bucket of a step to the set of its lease. Gives an error where there is no room.
local function add_bucket(place, step)
    local key = keys[5 + place]
    local a, b, c, d = byte(offsets, step * 4 - 3, step * 4)
    local number = ((a * 256 + b) * 256 + c) * 256 + d
    if size_of[place] == nil then
        size_of[place] = call('TYPE', key).ok ~= 'string' and call('SCARD', key)
    end
    if not size_of[place] then
        return pcall('SETBIT', key, math.floor(number / a_bit), 1)
    end
    local done = pcall('SADD', key, number)
    if done == 1 then
        size_of[place] = size_of[place] + 1
        if size_of[place] > FEW then
            done = pcall('SET', key, as_bits(call('SMEMBERS', key)))
            size_of[place], done = done.err and FEW, done.err and done or 1
        end
    end
    return done
end

-- Creates a session under the lease of the step, or moves it there. Gives the answer, or an error.
local function create_leased(step, bucket, session)
    local place = byte(places, step)
    local slot = slot_of[place]
    if not slot then
        return 'L'
    end
    local held = pcall('HGET', bucket, session)
    if type(held) == 'table' or held == slot then
        return held == slot and '0' or held
    elseif refused then
        return 'M'
    elseif not held and (full or count + more >= most) then
        full = true
        return 'F'
    end
    local done = add_bucket(place, step)
    if type(done) ~= 'table' then
        done = pcall('HSET', bucket, session, slot)
    end
    if type(done) == 'table' then
        return done
    end
    n = n + 1
    changed[n], found[n] = step, held
    hold(slot, 1)
    if held then
        if held ~= '' then
            hold(held, -1)
        end
        return '0'
    end
    more = more + 1
    log('C', session, sub(leases, place * 8 - 7, place * 8))
    return '1'
end

-- The lease of a slot that a session leaves.
local lease_of = {}
local function lease_at(slot)
    lease_of[slot] = lease_of[slot] or call('HGET', keys[4], slot) or string.rep('\0', 8)
    return lease_of[slot]
end

-- Destroys a session, if it is under the lease of a step that names one. Gives the answer, or an error.
local function destroy(step, bucket, session, slot)
    local held = pcall('HGET', bucket, session)
    if type(held) == 'table' then
        return held
    elseif not held or slot and held ~= slot then
        return '0'
    end
    local done = pcall('HDEL', bucket, session)
    if type(done) == 'table' then
        return done
    end
    n = n + 1
    changed[n], found[n] = step, held
    more = more - 1
    if held == '' then
        log('r', session, '')
    else
        hold(held, -1)
        log(slot and 'L' or 'R', session, lease_at(held))
    end
    return '1'
end

local base, from = 5 + lease_count, 2
if ARGV[8] == '1' and not refused and count + step_count <= most then
    -- Nothing but creates without a lease, and room for all of them: the most common script, and the one to be fast.
    local existed = {}
    local function undo_created(problem, before)
        for step = 1, before - 1 do
            if not existed[step] then
                call('HDEL', keys[base + step], session_of(step))
            end
        end
        return problem
    end
    for step = 1, step_count do
        local answer = pcall('HSETNX', keys[base + step], sub(steps, from, from + 15), '')
        from = from + 17
        if answer == 1 then
            n = n + 1
        elseif answer == 0 then
            existed[step] = true
        else
            return undo_created(answer, step)
        end
    end
    -- The log has creates as they are asked for.
    local created = steps
    for step = 1, n < step_count and step_count or 0 do
        if existed[step] then
            answers[step] = '0'
        else
            answers[step], part_count = '1', part_count + 1
            parts[part_count] = sub(steps, step * 17 - 16, step * 17)
        end
    end
    if n < step_count then
        created = table.concat(parts)
    end
    problem = n > 0 and append({created}, n, n, ARGV[6], tonumber(ARGV[4]), keys[5])
    if problem then
        return undo_created(problem, step_count + 1)
    end
    return {now, last + n, n == step_count and string.rep('1', n) or table.concat(answers)}
end
for step = 1, step_count do
    local letter, session, bucket = byte(steps, step * 17 - 16), session_of(step), keys[base + step]
    local answer
    if letter == 99 then
        if refused or full or count + more >= most then
            answer = pcall('HEXISTS', bucket, session)
            if answer == 1 then
                answer = '0'
            elseif answer == 0 then
                answer, full = refused and 'M' or 'F', full or not refused
            end
        else
            answer = pcall('HSETNX', bucket, session, '')
            if answer == 1 then
                n = n + 1
                changed[n], found[n] = step, false
                more = more + 1
                log('c', session, '')
                answer = '1'
            elseif answer == 0 then
                answer = '0'
            end
        end
    elseif letter == 67 then
        answer = create_leased(step, bucket, session)
    elseif letter == 100 then
        answer = destroy(step, bucket, session)
    else
        local slot = slot_of[byte(places, step)]
        answer = slot and destroy(step, bucket, session, slot) or 'L'
    end
    if type(answer) == 'table' then
        return undo(answer)
    end
    answers[step] = answer
end
problem = append(parts, logged, more, ARGV[6], tonumber(ARGV[4]), keys[5])
if problem then
    return undo(problem)
end
return {now, last + logged, table.concat(answers)}
