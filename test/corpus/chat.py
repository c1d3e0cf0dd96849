#!/usr/bin/env python3
"""Sessions as language models have them, from a seed: the same ones each time.

	chat.py [--sessions 1000] [--bytes 100000] [--spread 0.3] [--seed 1]
	        [--age-days 40] [--first 1] [--format copy|jsonl]

copy is a script for psql that fills mlint.session and mlint.message, in an
extension that was just created; jsonl is one session a line. --bytes is the
median of a session's text, --spread the sigma of its logarithm (0: all alike).

What makes a chat compressible is what it repeats, so that is imitated with
some care. A site has a few system prompts with tool definitions, and articles
that its tools look up, some far more often than others: those are in many
sessions. A session has a person, a project and its own names; it quotes itself,
and shows the same code again with changes. All the rest is new: prose by word
frequencies and pairs of words (english.txt, counted in documentation of free
software), tables, logs, JSON with numbers and ids that nobody can guess, other
languages. Prose alone compresses with zstd -3 as real English does, 100 kB
of it to 0.38.
"""

import argparse
import json
import math
import os
import random
import sys
from datetime import datetime, timedelta, timezone

FOLLOW = 0.42				# how often a word is one that often follows

here = os.path.dirname(os.path.abspath(__file__))


class English:
	"""Sentences by Zipf's law and by what follows what."""

	def __init__(self):
		self.words = []
		self.next = {}
		with open(os.path.join(here, "english.txt"), encoding="ascii") as file:
			for line in file:
				word, *after = line.split()
				self.words.append(word)
				self.next[word] = after
		n = len(self.words)
		weights = [1 / (rank + 2.7) for rank in range(n)]
		total = sum(weights)
		# A table to draw from, so that a draw is one index.
		self.table = []
		for word, weight in zip(self.words, weights):
			self.table += [word] * max(1, round(weight / total * 60000))

	def name(self, rng):
		"""A word that nobody else uses."""
		syllables = ("ka ri to ne lo mar vi sen dal po qui ber tra os fen gul "
			"hy jor lan wex zu pri mo cet ul na der ish tor bel").split()
		return "".join(rng.choice(syllables) for _ in range(rng.randint(2, 4)))

	def sentence(self, rng, own):
		draw = rng.random
		table = self.table
		size = len(table)
		after = self.next
		words = []
		word = table[int(draw() * size)]
		for _ in range(int(5 + draw() * draw() * 30)):
			words.append(word)
			r = draw()
			following = after.get(word)
			if r < FOLLOW and following:
				word = following[int(draw() * draw() * len(following))]
			elif r > 0.975:
				word = own[int(draw() * draw() * len(own))]
			elif r > 0.965:
				word = str(int(math.exp(draw() * 9)))
			else:
				word = table[int(draw() * size)]
			if r > 0.93 and r < 0.96:
				words[-1] += ","
		text = " ".join(words)
		return text[0].upper() + text[1:] + (
			"." if draw() < 0.9 else rng.choice("?!:"))

	def paragraph(self, rng, own, least=1, most=6):
		return " ".join(self.sentence(rng, own)
			for _ in range(rng.randint(least, most)))


ALPHABETS = {
	"de": [w for w in ("der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch man sein wurde Fehler Datei Zeile größer während können müssen Prüfung Änderung Übersicht ähnlich").split()],
	"es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin sobre este ya entre cuando todo esta ser son dos también fue había era muy años hasta desde está archivo línea función sesión configuración después".split(),
	"ru": "и в не на я быть он с что а по это она этот к но они мы весь который из у то за свой весь год от так о для ты же все тот мочь вы человек такой его сказать только или ещё бы себя один как уже до время если сам когда файл строка ошибка".split(),
	"zh": "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实".strip(),
	"ja": "のにはをたがでてとしれさあいるもなよこまりっんらせきうかつけどくおみちわ設定確認必要場合方法問題結果変更",
}


def foreign(rng, language):
	stock = ALPHABETS[language]
	pick = lambda: stock[int(rng.random() * rng.random() * len(stock))]
	if language in ("zh", "ja"):
		return "".join("".join(pick() for _ in range(rng.randint(6, 24))) +
			rng.choice("。。，？") for _ in range(rng.randint(2, 8)))
	return " ".join(" ".join(pick() for _ in range(rng.randint(5, 18))).capitalize() +
		rng.choice(".." "?") for _ in range(rng.randint(2, 6)))


class Site:
	"""What the sessions of one site share."""

	def __init__(self, seed, english):
		rng = random.Random(f"site {seed}")
		self.english = english
		self.terms = [english.name(rng) for _ in range(60)]
		para = lambda least, most: english.paragraph(rng, self.terms, least, most)
		tools = [{
			"name": f"{rng.choice('get list search create update run check'.split())}_{rng.choice('orders articles tickets invoices files users metrics logs deployments'.split())}",
			"description": para(1, 3),
			"parameters": {"type": "object", "properties": {
				english.name(rng): {"type": rng.choice(["string", "integer", "boolean", "array"]),
					"description": english.sentence(rng, self.terms)}
				for _ in range(rng.randint(2, 6))}}} for _ in range(24)]
		self.systems = [
			"You are a helpful assistant. " + "\n\n".join(para(3, 7) for _ in range(rng.randint(2, 6))) +
			"\n\n# Rules\n" + "".join(f"- {english.sentence(rng, self.terms)}\n" for _ in range(rng.randint(6, 14))) +
			"\n# Tools\n" + "".join(json.dumps(t) + "\n" for t in rng.sample(tools, rng.randint(3, 8)))
			for _ in range(6)]
		self.tools = [t["name"] for t in tools]
		self.articles = [
			f"# {english.sentence(rng, self.terms)}\n\n" +
			"\n\n".join(para(3, 8) for _ in range(rng.randint(2, 7)))
			for _ in range(400)]
		self.openings = [english.sentence(rng, self.terms) for _ in range(20)] + [
			"Certainly! ", "Great question! ", "Here's how you can do that:", "Let me look into this.",
			"I understand. ", "You're right, I apologize for the confusion.", "Sure, here is the updated version:"]
		self.closings = [english.sentence(rng, self.terms) for _ in range(10)] + [
			"Let me know if you have any questions!", "Would you like me to explain any part in more detail?",
			"I hope this helps!", "Let me know if you run into any issues."]

	def article(self, rng):
		return self.articles[int(rng.random() ** 2.5 * len(self.articles))]


class Session:
	def __init__(self, site, rng, size):
		self.site = site
		self.rng = rng
		self.own = [site.english.name(rng) for _ in range(30)] + rng.sample(site.terms, 10)
		self.code = None
		self.messages = []		# kind, content, extra
		self.size = size
		self.bytes = 0
		self.write()

	def add(self, kind, content, **extra):
		self.messages.append((kind, content, extra))
		self.bytes += len(content.encode())

	# ---- the parts of texts ----

	def prose(self, least=1, most=6):
		return self.site.english.paragraph(self.rng, self.own, least, most)

	def bullets(self):
		rng = self.rng
		style = rng.choice(["- {}", "{n}. {}", "* **{w}**: {}", "- `{w}`: {}"])
		return "\n".join(style.format(self.prose(1, 2), n=i + 1, w=rng.choice(self.own))
			for i in range(rng.randint(3, 9)))

	def table(self):
		rng = self.rng
		columns = rng.sample(self.own, 3)
		return "| " + " | ".join(columns) + " |\n|---|---|---|\n" + "\n".join(
			f"| {rng.choice(self.own)} | {rng.random() * 1000:.2f} | {rng.choice(self.site.english.words[:400])} |"
			for _ in range(rng.randint(3, 12)))

	def new_code(self):
		rng = self.rng
		names = self.own[:14] + rng.sample(self.site.english.words[40:1500], 16)
		name = lambda: rng.choice(names)
		word = lambda: rng.choice(self.site.english.words)
		shapes = {
			"python": [
				lambda: f"    {name()}_{name()} = self.{name()}({name()}, {rng.randint(0, 99)})",
				lambda: f"    if {name()} is None or len({name()}) > {rng.randint(1, 500)}:\n        raise ValueError(f\"{word()} {word()} {{{name()}}}\")",
				lambda: f"    for {name()} in {name()}.{word()}():\n        {name()}.append({name()}[\"{word()}\"])",
				lambda: f"    # {self.site.english.sentence(rng, self.own)}",
				lambda: f"    return {name()}.{name()}({name()}={name()})",
				lambda: f"\ndef {word()}_{name()}(self, {name()}, {name()}=None):"],
			"javascript": [
				lambda: f"  const {name()} = await {name()}.{word()}({{ {word()}: {name()}, {word()}: {rng.randint(0, 999)} }});",
				lambda: f"  if (!{name()}.{word()}) {{\n    throw new Error(`{word()} {word()} ${{{name()}}}`);\n  }}",
				lambda: f"  {name()}.{word()}(({name()}) => {name()}.{word()}({name()}));",
				lambda: f"  // {self.site.english.sentence(rng, self.own)}",
				lambda: f"}}\n\nexport async function {word()}{name().title()}({name()}, {name()}) {{"],
			"sql": [
				lambda: f"SELECT {word()}.{name()}, count(*) AS {name()}\nFROM {name()}_{word()} {word()}\nWHERE {name()} > {rng.randint(0, 9999)}\nGROUP BY 1;",
				lambda: f"CREATE INDEX ON {name()}_{word()} ({name()}, {word()});",
				lambda: f"UPDATE {name()} SET {word()} = '{word()}' WHERE {name()} = {rng.randint(1, 99999)};"],
			"bash": [
				lambda: f"docker run --rm -v ${{PWD}}/{name()}:/{word()} {name()}/{word()}:{rng.randint(1, 20)}.{rng.randint(0, 30)}",
				lambda: f"curl -s https://{name()}.example.com/api/{word()}/{rng.randint(1, 99999)} | jq '.{word()}'",
				lambda: f"grep -rn \"{word()}\" {name()}/ | sort | uniq -c"],
		}
		language = rng.choices(list(shapes), [5, 4, 2, 1])[0]
		lines = [rng.choice(shapes[language])() for _ in range(rng.randint(6, 40))]
		self.code = (language, lines, shapes[language])

	def code_block(self):
		"""New code, or what was shown before with changes."""
		rng = self.rng
		if self.code is None or rng.random() < 0.55:
			self.new_code()
		else:
			language, lines, shapes = self.code
			lines = list(lines)
			for _ in range(rng.randint(1, 1 + len(lines) // 4)):
				lines[rng.randrange(len(lines))] = rng.choice(shapes)()
			self.code = (language, lines, shapes)
		return f"```{self.code[0]}\n" + "\n".join(self.code[1]) + "\n```"

	def log(self):
		rng = self.rng
		at = rng.randrange(86400)
		modules = rng.sample(self.own, 5)
		lines = []
		for _ in range(rng.randint(8, 50)):
			at += int(rng.expovariate(0.3))
			lines.append(f"2025-{rng.randint(1, 2):02d}-11 {at // 3600 % 24:02d}:{at // 60 % 60:02d}:{at % 60:02d},{rng.randrange(1000):03d} "
				f"{rng.choices(['INFO', 'WARN', 'ERROR', 'DEBUG'], [6, 2, 1, 3])[0]} {rng.choice(modules)}.{rng.choice(modules)} - "
				f"{self.site.english.sentence(rng, self.own)} id={rng.getrandbits(48):x}")
		return "\n".join(lines)

	def records(self):
		rng = self.rng
		keys = ["id", "created_at", "status"] + rng.sample(self.site.english.words[50:600], 4)
		rows = [{keys[0]: f"{rng.getrandbits(64):016x}",
			keys[1]: f"2025-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}T{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}Z",
			keys[2]: rng.choice(["open", "closed", "pending", "failed"]),
			keys[3]: round(rng.random() * 10000, 2), keys[4]: rng.choice(self.own),
			keys[5]: rng.random() < 0.5, keys[6]: self.site.english.sentence(rng, self.own)}
			for _ in range(rng.randint(2, 20))]
		return json.dumps({"results": rows, "total": rng.randint(20, 9999)}, ensure_ascii=False)

	# ---- the conversation ----

	def prompt(self):
		rng = self.rng
		r = rng.random()
		if r < 0.62:
			text = self.prose(1, 4)
		elif r < 0.70:
			text = self.prose(1, 2) + "\n\n```\n" + self.log() + "\n```"
		elif r < 0.78:
			text = self.prose(1, 2) + "\n\n" + self.code_block()
		elif r < 0.86:
			text = "\n\n".join(self.prose(3, 8) for _ in range(rng.randint(2, 8)))
		elif r < 0.93:
			said = [content for kind, content, _ in self.messages if kind == "response"]
			quote = rng.choice(said or [self.prose()])
			at = rng.randrange(max(1, len(quote) - 200))
			text = "> " + quote[at:at + rng.randint(60, 600)].replace("\n", "\n> ") + "\n\n" + self.prose(1, 2)
		else:
			text = foreign(rng, rng.choice(list(ALPHABETS)))
		if rng.random() < 0.05:
			text += " " + rng.choice("🙏👍😀🎉🤔")
		return text

	def response(self):
		rng = self.rng
		parts = [rng.choice(self.site.openings)] if rng.random() < 0.5 else []
		for _ in range(rng.randint(1, 6)):
			r = rng.random()
			if r < 0.50:
				parts.append(self.prose(2, 6))
			elif r < 0.68:
				parts.append(self.bullets())
			elif r < 0.90:
				parts.append(self.code_block())
			elif r < 0.95:
				parts.append(self.table())
			elif r < 0.98:
				parts.append(f"## {self.site.english.sentence(rng, self.own)}")
			else:
				parts.append(foreign(rng, rng.choice(list(ALPHABETS))))
		if rng.random() < 0.4:
			parts.append(rng.choice(self.site.closings))
		return "\n\n".join(parts)

	def write(self):
		rng = self.rng
		self.add("prompt", rng.choice(self.site.systems), metadata={"role": "system"})
		while self.bytes < self.size:
			self.add("prompt", self.prompt())
			said = self.response()
			calls = rng.randint(1, 3) if rng.random() < 0.3 else 0
			self.add("response", said, usage={
				"prompt_tokens": self.bytes // 4, "completion_tokens": len(said) // 4})
			for _ in range(calls):
				found = self.site.article(rng) if rng.random() < 0.6 else self.records()
				self.add("tool_call", found, tool={"name": rng.choice(self.site.tools),
					"arguments": {rng.choice(self.own): rng.choice(self.own), "limit": rng.randint(1, 50)}})


# ---- rows ----

def uuid7(rng, at):
	ms = int(at.timestamp() * 1000)
	n = ms << 80 | 7 << 76 | rng.getrandbits(12) << 64 | 2 << 62 | rng.getrandbits(62)
	h = f"{n:032x}"
	return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def sessions(args):
	english = English()
	site = Site(args.seed, english)
	for number in range(args.first, args.first + args.sessions):
		rng = random.Random(f"session {args.seed} {number}")
		size = int(args.bytes * math.exp(rng.gauss(0, args.spread)))
		at = datetime(2026, 1, 1, tzinfo=timezone.utc) - timedelta(
			days=args.age_days + rng.random() * 300)
		model = rng.choice(["gpt-4", "claude-3", "llama-3-70b"])
		chat = Session(site, rng, size)
		row = {"session_id": f"chat-{args.seed}-{number}", "model_id": model,
			"status": rng.choices(["completed", "active", "failed"], [7, 2, 1])[0],
			"tags": sorted({rng.choice(["production", "staging"]), rng.choice(["support", "coding", "sales"])}),
			"metadata": {"user_id": f"user-{rng.randrange(5000)}", "channel": rng.choice(["web", "api", "mobile"])},
			"started_at": at.isoformat()}
		messages = []
		parent = None
		response = None
		for kind, content, extra in chat.messages:
			at += timedelta(microseconds=int(rng.expovariate(1 / 4e7)) + 1)
			message = {"id": uuid7(rng, at), "kind": kind, "content": content, "created_at": at.isoformat(),
				"parent": response if kind == "tool_call" else parent, "metadata": extra.get("metadata", {})}
			if kind == "response":
				message |= {"model_id": model, "usage": extra["usage"], "latency_ms": round(rng.lognormvariate(7, 0.6), 1)}
				response = message["id"]
			if "tool" in extra:
				message["tool"] = extra["tool"]
			parent = message["id"]
			messages.append(message)
		row["active_at"] = at.isoformat()
		row["ended_at"] = None if row["status"] == "active" else at.isoformat()
		yield number, row, messages


def escape(value):
	if value is None:
		return "\\N"
	if isinstance(value, (dict, bool)):
		value = json.dumps(value, ensure_ascii=False)
	if isinstance(value, list):
		value = "{" + ",".join(value) + "}"
	return str(value).replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def copy(args, out):
	said = ["id", "parent", "kind", "content", "model_id", "usage", "latency_ms", "tool", "metadata", "created_at"]
	rows = []
	out.write("BEGIN;\n")
	out.write("CREATE TEMP TABLE chat_message (LIKE mlint.message) ON COMMIT DROP;\n")
	out.write(f"COPY chat_message (session, seq, {', '.join(said)}) FROM stdin;\n")
	seq = 0
	for number, row, messages in sessions(args):
		rows.append((number, row))
		for message in messages:
			seq += 1
			out.write(f"{number}\t{args.first * 10000 + seq}\t" +
				"\t".join(escape(message.get(column)) for column in said) + "\n")
	out.write("\\.\n")
	columns = ["session_id", "model_id", "status", "tags", "metadata", "started_at", "ended_at", "active_at"]
	out.write(f"COPY mlint.session (id, {', '.join(columns)}, updated_at) FROM stdin;\n")
	for number, row in rows:
		out.write(f"{number}\t" + "\t".join(escape(row[column]) for column in columns) +
			f"\t{escape(row['active_at'])}\n")
	out.write("\\.\n")
	out.write("INSERT INTO mlint.message SELECT * FROM chat_message ORDER BY seq;\n")
	out.write("SELECT pg_catalog.setval('mlint.session_id_seq', greatest((SELECT max(id) FROM mlint.session), 1)),\n"
		"\tpg_catalog.setval('mlint.message_seq_seq', greatest((SELECT max(seq) FROM mlint.message), 1));\n")
	out.write("COMMIT;\nANALYZE mlint.session, mlint.message;\n")
	# These are all of them: no dump's list of rows is to come.
	out.write("SELECT mlint.restore_accept();\n")


def main():
	parser = argparse.ArgumentParser()
	parser.add_argument("--sessions", type=int, default=1000)
	parser.add_argument("--bytes", type=int, default=100000)
	parser.add_argument("--spread", type=float, default=0.3)
	parser.add_argument("--seed", type=int, default=1)
	parser.add_argument("--age-days", type=float, default=40)
	parser.add_argument("--first", type=int, default=1)
	parser.add_argument("--format", choices=["copy", "jsonl"], default="copy")
	args = parser.parse_args()
	out = open(sys.stdout.fileno(), "w", encoding="utf-8", newline="\n", closefd=False)
	if args.format == "copy":
		copy(args, out)
	else:
		for _, row, messages in sessions(args):
			row["messages"] = messages
			out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
	out.flush()


main()
