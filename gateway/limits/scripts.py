"""What Redis does, in Lua: each script is one round trip and happens at once or not at all.

Counters are hashes of the minute, its count and the count of the minute before; generations at
once are sorted sets of leases by the time they run out. The clock is the server's, so that the
gateways' own need not agree.
"""

EXCHANGE = """
local WINDOW = 60000
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local minute = math.floor(now / WINDOW)
local elapsed = now % WINDOW
local out = {minute, elapsed, redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0}
local key, argument = 1, 1
local function next_key() key = key + 1; return KEYS[key] end
local function next_argument() argument = argument + 1; return ARGV[argument] end
local function next_number() return tonumber(next_argument()) end

local function read(name)
    local found = redis.call('HMGET', name, 'minute', 'current', 'previous')
    local age = minute - (tonumber(found[1]) or 0)
    if age == 0 then return tonumber(found[2]), tonumber(found[3]) end
    if age == 1 then return 0, tonumber(found[2]) end
    return 0, 0
end

local function write(name, current, previous)
    redis.call('HSET', name, 'minute', minute, 'current', current, 'previous', previous)
    redis.call('PEXPIRE', name, 2 * WINDOW)
end

local function take()
    local lease, ttl = next_argument(), next_number()
    local fits, place, found = 1, #out + 1, {}
    out[place] = 0
    for number = 1, next_number() do
        local name, kind, value, cost = next_key(), next_argument(), next_number(), next_number()
        local current, previous = 0, 0
        if kind == 'lease' then
            redis.call('ZREMRANGEBYSCORE', name, '-inf', now)
            current = redis.call('ZCARD', name)
        else
            current, previous = read(name)
        end
        if previous * (WINDOW - elapsed) + (current + cost) * WINDOW > value * WINDOW then
            fits = 0
        end
        found[number] = {name, kind, cost, current, previous}
        out[#out + 1] = current
        out[#out + 1] = previous
    end
    out[place] = fits
    if fits == 0 then return end
    for _, one in ipairs(found) do
        if one[2] == 'lease' then
            redis.call('ZADD', one[1], now + ttl, lease)
            redis.call('PEXPIRE', one[1], ttl)
        else
            write(one[1], one[4] + one[3], one[5])
        end
    end
end

local function release()
    local lease = next_argument()
    for _ = 1, next_number() do redis.call('ZREM', next_key(), lease) end
end

local function give_back()
    local counted = next_number()
    for _ = 1, next_number() do
        local name, cost = next_key(), next_number()
        local current, previous = read(name)
        if counted == minute then
            write(name, math.max(0, current - cost), previous)
        elseif counted == minute - 1 then
            write(name, current, math.max(0, previous - cost))
        end
    end
end

while argument < #ARGV do
    local what = next_argument()
    if what == 'take' then take() elseif what == 'release' then release() else give_back() end
end
return table.concat(out, ' ')
"""
"""Any number of requests that come and go.

KEYS: the processes, then the counters in the order of what follows. ARGV: this process, then
`take` lease ttl_ms n (kind value cost)…, `release` lease n, `give_back` minute n (cost)…
Answer: the minute, its age in ms, whether this process is known, and for each `take` 1 or 0 and the
counts that were found."""

KEEP = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ttl = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ttl, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ttl)
local argument = 3
for number = 2, #KEYS do
    for _ = 1, tonumber(ARGV[argument]) do
        argument = argument + 1
        redis.call('ZADD', KEYS[number], now + ttl, ARGV[argument])
    end
    argument = argument + 1
    redis.call('PEXPIRE', KEYS[number], ttl)
end
return redis.call('ZCARD', KEYS[1])
"""
"""A sign of life, and the leases that this process still needs: they are there again even if Redis
had lost them. KEYS: the processes, then counters. ARGV: this process, ttl_ms, then for each counter
the number of its leases and the leases. Answer: how many processes there are."""
