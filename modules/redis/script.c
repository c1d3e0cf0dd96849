/*
 * script.c
 *		The laws as Lua, one script each, so that a decision is one atomic step
 *		in the store.
 *
 * The scripts keep the states of law.c, in the same terms: a bucket is the
 * time at which it will be full again; a fixed window its end and a count; a
 * sliding window the steps of which something counts. They change nothing but
 * the state and return the one that was judged, from which law.c makes the
 * verdict: so both must settle a state and judge it alike. Read them beside it.
 *
 * Numbers of Lua are doubles, exact to 2^53. Products that would go beyond are
 * avoided (the time of a number of tokens comes as an argument, worked out in
 * 128 bits) or ruled out by script_check_law(). floor(a / b) of exact
 * integers is exact. A state in the store is text, with its law's letter in
 * front: what another algorithm has left is a fresh state.
 *
 * A key expires when its state is as good as new. One that changes nothing is
 * not written; a state that was made when the clock was ahead, or under another
 * law, is, whatever is decided: else each refusal would begin its debt anew.
 *
 * Arguments of all: intent (t take, n take now, p peek), need, want, give,
 * give_age; then those of the law. All return now, taken, idle_at, value.
 */
#include "redis.h"

#define EXACT_MAX		(INT64CONST(1) << 53)

enum
{
	SCRIPT_BUCKET, SCRIPT_FIXED, SCRIPT_SLIDING
};

#define BEGIN \
	"local t = redis.call('TIME')\n" \
	"local now = t[1] * 1000000 + t[2]\n" \
	"local intent = ARGV[1]\n" \
	"local need, want, give, age = tonumber(ARGV[2]), tonumber(ARGV[3])," \
	" tonumber(ARGV[4]), tonumber(ARGV[5])\n" \
	"local floor = math.floor\n" \
	"local taken, dirty = 0, false\n"

/* An integer's text: tostring() has 14 digits. */
#define NUMBER(n)	"string.format('%.0f', " n ")"

const char *const scripts[] = {
	[SCRIPT_BUCKET] =
	BEGIN
	"local rate, full, full_rest = tonumber(ARGV[6]), tonumber(ARGV[7])," \
	" tonumber(ARGV[8])\n"
	"local token, token_rest = tonumber(ARGV[9]), tonumber(ARGV[10])\n"
	"local idle, value = now, 0\n"
	"local s = redis.call('GET', KEYS[1])\n"
	"if s then\n"
	"  local a, b = string.match(s, '^b (%d+) (%d+)$')\n"
	"  if a then idle, value = tonumber(a), tonumber(b) end\n"
	"end\n"
	/* Microseconds by which more is owed than can be. */
	"local function excess(idle, value)\n"
	"  local e = idle - now - full\n"
	"  if value >= rate - full_rest then e = e - 1 end\n"
	"  return e\n"
	"end\n"
	/* The state as it can be now. */
	"if value >= rate then value = 0 end\n"
	"if idle <= now then idle, value = now, 0\n"
	"elseif excess(idle, value) > 0 then\n"
	"  idle, value = now + full, 0\n"
	"  if full_rest > 0 then idle, value = idle + 1, rate - full_rest end\n"
	"  dirty = true\n"
	"end\n"
	"if give > 0 then\n"
	"  idle = idle - tonumber(ARGV[15])\n"
	"  value = value - (rate - tonumber(ARGV[16]))\n"
	"  if value >= 0 then idle = idle - 1 else value = value + rate end\n"
	"  if idle <= now then idle, value = now, 0 end\n"
	"  dirty = true\n"
	"end\n"
	"local i, v\n"
	"local function take(n, us, rest)\n"
	"  i, v = idle + us, value - rest\n"
	"  if v < 0 then i, v = i + 1, v + rate end\n"
	"  if excess(i, v) > 0 then return false end\n"
	"  taken = n\n"
	"  return true\n"
	"end\n"
	"if need > 0 and (intent == 't' or intent == 'n' and idle <= now) then\n"
	"  if not take(want, tonumber(ARGV[13]), tonumber(ARGV[14])) and\n"
	"      want > need and take(need, tonumber(ARGV[11]), tonumber(ARGV[12])) then\n"
	/* More than needed, less than wanted: about so many, and exactly judged. */
	"    local n = floor((now + full - idle) / (token + token_rest / rate))\n"
	"    if n >= want then n = want - 1 end\n"
	"    local tries = 0\n"
	"    while n > need and tries < 3 and n * token_rest < 9007199254740992 do\n"
	"      local rest = n * token_rest % rate\n"
	"      local i0, v0 = i, v\n"
	"      if take(n, n * token + (n * token_rest - rest) / rate, rest) then break end\n"
	"      i, v = i0, v0\n"
	"      n, tries = n - 1, tries + 1\n"
	"    end\n"
	"  end\n"
	"end\n"
	"local before, rest = idle, value\n"
	"if taken > 0 then idle, value, dirty = i, v, true end\n"
	"if dirty and idle <= now then redis.call('DEL', KEYS[1])\n"
	"elseif dirty then\n"
	"  redis.call('SET', KEYS[1], string.format('b %.0f %.0f', idle, value),\n"
	"    'PX', string.format('%.0f', floor((idle - now) / 1000) + 1))\n"
	"end\n"
	"return {now, taken, before, rest}\n",

	[SCRIPT_FIXED] =
	BEGIN
	"local rate, per = tonumber(ARGV[6]), tonumber(ARGV[7])\n"
	"local start = now - now % per\n"
	"local used = 0\n"
	"local s = redis.call('GET', KEYS[1])\n"
	"if s then\n"
	"  local a, b = string.match(s, '^f (%d+) (%d+)$')\n"
	"  if a and tonumber(a) > now then\n"
	"    used, dirty = tonumber(b), tonumber(a) ~= start + per\n"
	"  end\n"
	"end\n"
	"if give > 0 and now - age >= start then\n"
	"  used, dirty = math.max(used - give, 0), true\n"
	"end\n"
	"if need > 0 and (intent == 't' or intent == 'n') and rate - used >= need then\n"
	"  taken, dirty = math.min(want, rate - used), true\n"
	"end\n"
	"if dirty and used + taken == 0 then redis.call('DEL', KEYS[1])\n"
	"elseif dirty then\n"
	"  redis.call('SET', KEYS[1], string.format('f %.0f %.0f', start + per, used + taken),\n"
	"    'PX', string.format('%.0f', floor((start + per - now) / 1000) + 1))\n"
	"end\n"
	"return {now, taken, start + per, used}\n",

	[SCRIPT_SLIDING] =
	BEGIN
	"local rate, per = tonumber(ARGV[6]), tonumber(ARGV[7])\n"
	"local function step_of(at)\n"
	"  local r = at % per\n"
	"  return (at - r) / per * 50 + floor(r * 50 / per)\n"
	"end\n"
	/* When what was taken in a step no longer counts. */
	"local function expiry(step)\n"
	"  local a = step + 51\n"
	"  local r = a % 50\n"
	"  return (a - r) / 50 * per + math.ceil(r * per / 50)\n"
	"end\n"
	"local step = step_of(now)\n"
	"local steps, counts, n, used, present = {}, {}, 0, 0, 0\n"
	"local s = redis.call('GET', KEYS[1])\n"
	"if s and string.sub(s, 1, 2) == 's ' then\n"
	"  local p = string.match(s, '^s (%d+)')\n"
	"  local foreign = tonumber(p) ~= per\n"
	"  for a, c in string.gmatch(s, '(%d+):(%d+)') do\n"
	"    a, c = tonumber(a), tonumber(c)\n"
	"    if foreign or a >= step then\n"
	"      present = present + c; used = used + c\n"
	"      if foreign or a > step then dirty = true end\n"
	"    elseif step - a <= 50 then\n"
	"      n = n + 1; steps[n] = a; counts[n] = c; used = used + c\n"
	"    end\n"
	"  end\n"
	"end\n"
	"if present > 0 then n = n + 1; steps[n] = step; counts[n] = present end\n"
	/* Back to where it was taken, or before: newer ones are others'. */
	"if give > 0 then\n"
	"  local from = step_of(now - age)\n"
	"  for k = n, 1, -1 do\n"
	"    if steps[k] <= from and give > 0 then\n"
	"      local part = math.min(counts[k], give)\n"
	"      counts[k] = counts[k] - part\n"
	"      give, used, dirty = give - part, used - part, true\n"
	"      if counts[k] == 0 then\n"
	"        table.remove(steps, k); table.remove(counts, k); n = n - 1\n"
	"      end\n"
	"    end\n"
	"  end\n"
	"end\n"
	"if need > 0 and (intent == 't' or intent == 'n') and rate - used >= need then\n"
	"  taken, dirty = math.min(want, rate - used), true\n"
	"end\n"
	"local answer = {now, taken, n > 0 and expiry(steps[n]) or 0, 0}\n"
	"for k = 1, n do\n"
	"  answer[3 + 2 * k] = steps[k]; answer[4 + 2 * k] = counts[k]\n"
	"end\n"
	"if taken > 0 then\n"
	"  if n > 0 and steps[n] == step then counts[n] = counts[n] + taken\n"
	"  else n = n + 1; steps[n] = step; counts[n] = taken end\n"
	"end\n"
	"if dirty and n == 0 then redis.call('DEL', KEYS[1])\n"
	"elseif dirty then\n"
	"  local text = {'s ' .. ARGV[7]}\n"
	"  for k = 1, n do\n"
	"    text[k + 1] = string.format('%.0f:%.0f', steps[k], counts[k])\n"
	"  end\n"
	"  redis.call('SET', KEYS[1], table.concat(text, ' '),\n"
	"    'PX', string.format('%.0f', floor((expiry(steps[n]) - now) / 1000) + 1))\n"
	"end\n"
	"return answer\n",
	NULL
};

int
script_of(const RateLaw *law)
{
	switch (law->algorithm)
	{
		case RATE_FIXED_WINDOW:
			return SCRIPT_FIXED;
		case RATE_SLIDING_WINDOW:
			return SCRIPT_SLIDING;
		default:
			return SCRIPT_BUCKET;
	}
}

const char *
script_check_law(const RateLaw *law)
{
	if (law->rate >= EXACT_MAX || law->burst >= EXACT_MAX)
		return "Redis reckons exactly only up to 2^53 = 9007199254740992: rate and burst must be below.";
	/* A time, and this, are added. */
	if (law->algorithm != RATE_FIXED_WINDOW &&
		law->algorithm != RATE_SLIDING_WINDOW &&
		law->full_us >= EXACT_MAX / 2)
		return "Redis reckons exactly only up to 2^53: burst must not take longer than 142 years to fill at this rate.";
	if (law->algorithm == RATE_SLIDING_WINDOW &&
		law->per >= EXACT_MAX / RATE_STEPS)
		return "Redis reckons exactly only up to 2^53: per must be below 2085 days for a sliding_window.";
	return NULL;
}

/* The time of so many tokens: microseconds, and a rest over rate. */
static void
tokens_time(Command *command, const RateLaw *law, int64 tokens)
{
	int128		time = (int128) tokens * law->per;

	command_int(command, (int64) (time / law->rate));
	command_int(command, (int64) (time % law->rate));
}

void
script_arguments(Command *command, const RemoteAsk *ask)
{
	const RateLaw *law = ask->law;

	command_text(command, ask->intent == RATE_PEEK ? "p" :
				 ask->intent == RATE_TAKE_NOW &&
				 law->algorithm == RATE_LEAKY_BUCKET ? "n" : "t");
	command_int(command, ask->need);
	command_int(command, ask->want);
	command_int(command, ask->give);
	command_int(command, ask->give_age);
	command_int(command, law->rate);
	if (script_of(law) != SCRIPT_BUCKET)
	{
		command_int(command, law->per);
		return;
	}
	command_int(command, law->full_us);
	command_int(command, law->full_rest);
	command_int(command, law->token_us);
	command_int(command, law->token_rest);
	tokens_time(command, law, ask->need);
	tokens_time(command, law, ask->want);
	tokens_time(command, law, ask->give);
}

/* A segment of law.h's sliding window. */
#define SEGMENT(step, count) \
	((uint32) ((step) & 63) << 26 | (uint32) (count))

bool
script_answer(const RateLaw *law, const redisReply * reply,
			  int64 want, RemoteAnswer *answer)
{
	RateState  *before = &answer->before;
	int64		last = -1;
	int64		step;

	memset(answer, 0, sizeof(*answer));
	if (reply->type != REDIS_REPLY_ARRAY || reply->elements < 4 ||
		reply->elements % 2 != 0)
		return false;
	for (size_t i = 0; i < reply->elements; i++)
	{
		if (reply->element[i]->type != REDIS_REPLY_INTEGER ||
			reply->element[i]->integer < 0 ||
			reply->element[i]->integer > EXACT_MAX)
			return false;
	}
	answer->now = reply->element[0]->integer;
	answer->taken = reply->element[1]->integer;
	before->idle_at = reply->element[2]->integer;
	before->value = reply->element[3]->integer;
	if (answer->taken > want)
		return false;
	if (law->algorithm != RATE_SLIDING_WINDOW)
		return reply->elements == 4;

	/*
	 * Of the last steps, each once, the oldest first: so there are not too
	 * many, and law.c has room for one more of the present.
	 */
	step = answer->now / law->per * RATE_STEPS +
		answer->now % law->per * RATE_STEPS / law->per;
	for (size_t i = 4; i < reply->elements; i += 2)
	{
		int64		at = reply->element[i]->integer;
		int64		count = reply->element[i + 1]->integer;

		if (at <= last || at < step - RATE_STEPS || at > step ||
			count > RATE_SLIDING_MAX)
			return false;
		before->segments[before->nsegments++] = SEGMENT(at, count);
		last = at;
	}
	return true;
}
