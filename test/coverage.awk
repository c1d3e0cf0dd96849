# coverage.awk: a table of a tracefile of lcov's; see coverage.sh.

/^SF:/ {
	file = substr($0, 4)
	sub("^" tree, "", file)
	room = file
	sub("/[^/]*$", "", room)
	sub("^src/", "", room)
	missed = ""
	from = 0
}

# Lines come in order; what lies between two that did not run has no code.
/^DA:/ {
	split(substr($0, 4), da, ",")
	lines[room]++
	if (da[2] > 0) {
		ran[room]++
		range()
	} else {
		if (!from)
			from = da[1]
		to = da[1]
	}
}

/^end_of_record/ {
	range()
	if (missed != "")
		report[++reports] = file ":" missed
}

function range()
{
	if (from)
		missed = missed " " (from == to ? from : from "-" to)
	from = 0
}

function row(name, of, all)
{
	return sprintf("%-22s %6d of %6d  %5.1f %%", name, of, all,
		all ? 100 * of / all : 0)
}

END {
	for (room in lines) {
		print row(room, ran[room], lines[room]) | "sort"
		all += lines[room]
		good += ran[room]
	}
	close("sort")
	print row("all", good, all)
	print "\nNot covered:"
	for (i = 1; i <= reports; i++)
		print report[i]
	if (!all || 100 * good < least * all) {
		print "\nLess than " least " % of the lines ran."
		exit 1
	}
}
