-- Returns the mark of the log at a position, or nil if the log does not hold it. KEYS[2] is the log.
local function mark_at(position)
    if position == last then
        return mark
    end
    local entry = position < last and call('XRANGE', KEYS[2], text(position), '+', 'COUNT', 1)[1]
    if not entry then
        return nil
    end
    local final, changes = string.match(entry[1], '^(%d+)-(%d+)$')
    local before = final - changes
    if position > before then
        return string.sub(entry[2][2], 9, 16)
    end
    return position == before and string.sub(entry[2][2], 1, 8) or nil
end
