-- Appends changes to the log as one entry. KEYS[2] is the log.
-- The entry's id consists of the position of its last change and the number of its changes. Its only field holds the
-- mark of the previous entry, the entry's own mark, and the changes.

-- By slot, by how much the number of sessions under the lease changes.
local held_more = {}
local function hold(slot, more)
    held_more[slot] = (held_more[slot] or 0) + more
end

-- Appends the entry, and updates the counts of sessions. `more` is by how much the partition's session count changes.
-- Returns nil, or an error after undoing everything.
local function append(parts, changes, more, own_mark, retain, held_key)
    local counted = {}
    local function undo(problem)
        for slot, by in pairs(counted) do
            call('HINCRBY', held_key, slot, -by)
        end
        return problem
    end
    for slot, by in pairs(held_more) do
        local done = pcall('HINCRBY', held_key, slot, by)
        if type(done) == 'table' then
            return undo(done)
        end
        counted[slot] = by
    end
    if changes == 0 then
        return nil
    end
    local final = last + changes
    local added = pcall('XADD', KEYS[2], text(final) .. '-' .. changes, 'e', mark .. own_mark .. table.concat(parts))
    if type(added) == 'table' and added.err then
        return undo(added)
    end
    call('HSET', meta, 'end', text(final), 'mark', own_mark, 'count', text(count + more))
    -- Trims the log only once per `step` changes.
    local step = math.max(1, math.min(1000, math.floor(retain / 8)))
    if final > retain and math.floor(last / step) ~= math.floor(final / step) then
        pcall('XTRIM', KEYS[2], 'MINID', text(final - retain + 1))
    end
    return nil
end
