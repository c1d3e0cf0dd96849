-- The tables of options in delivery.md, as Markdown, from mlint.drivers:
-- docs/drivers.sh puts them there. What all drivers have alike stands first.
\pset format unaligned
\pset tuples_only on
\set ON_ERROR_STOP 1

WITH option AS (
	SELECT d.*,
		count(*) OVER (PARTITION BY option, type, "default", bounds, required, help)
			= (SELECT count(DISTINCT driver) FROM mlint.drivers) AS common
	FROM mlint.driver_options() WITH ORDINALITY
		AS d(driver, option, type, "default", bounds, required, help, n)
), line AS (
	SELECT CASE WHEN common THEN '' ELSE driver END AS driver, min(n) AS n,
		format('| `%s` | %s | %s | %s |', option,
			type || coalesce(': ' || replace(bounds, ' | ', ', '), ''),
			CASE WHEN required THEN '**required**'
				ELSE coalesce('`' || "default" || '`', '') END,
			help) AS line
	FROM option
	GROUP BY 1, 3, option
), chapter AS (
	SELECT driver,
		CASE driver WHEN '' THEN '### Every driver'
			ELSE format('### %s', driver) END
		|| E'\n\n| option | type | default | |\n| --- | --- | --- | --- |\n'
		|| string_agg(line, E'\n' ORDER BY n) AS text,
		min(n) AS n
	FROM line GROUP BY driver
)
SELECT text || CASE WHEN lead(1) OVER w IS NULL THEN '' ELSE E'\n' END
FROM chapter WINDOW w AS (ORDER BY driver <> '', n) ORDER BY driver <> '', n;
