# Texts with credentials in them, made when a test runs: no complete credential
# stands in this repository, and none was ever anybody's.
#
# In a template {kind:length} is a random string, always the same for the same
# seed:
#	x hex   X upper-case hex   a letters and digits   l lower-case and digits
#	U upper-case and digits   u upper-case and 2 to 7   w URL-safe base64
#	b base64   d digits   L letters   g Bech32   c of letters, digits and !@#%^&*
# {uuid} is a UUID, {crc} thirty letters and digits and their CRC-32 in base
# 62, {basic} the base64 of a user and a password.
package ScanCorpus;

use strict;
use warnings;

use Compress::Zlib qw(crc32);
use Digest::SHA qw(sha256);
use MIME::Base64 qw(encode_base64);

my @upper = 'A' .. 'Z';
my @lower = 'a' .. 'z';
my @digit = 0 .. 9;
my @base62 = (@digit, @upper, @lower);
my %alphabet = (
	x => [ @digit, 'a' .. 'f' ],
	X => [ @digit, 'A' .. 'F' ],
	a => \@base62,
	l => [ @digit, @lower ],
	U => [ @digit, @upper ],
	u => [ @upper, 2 .. 7 ],
	w => [ @base62, '-', '_' ],
	b => [ @base62, '+', '/' ],
	d => \@digit,
	L => [ @upper, @lower ],
	g => [ split //, 'QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L' ],
	c => [ @base62, split //, '!@#%^&*' ]);

# A stream of random numbers from a seed.
sub new
{
	my ($class, $seed) = @_;
	return bless { seed => $seed, n => 0, bytes => [] }, $class;
}

sub byte
{
	my ($self) = @_;
	$self->{bytes} = [ unpack 'C*', sha256("$self->{seed}/" . $self->{n}++) ]
	  unless @{ $self->{bytes} };
	return shift @{ $self->{bytes} };
}

sub random
{
	my ($self, $kind, $length) = @_;
	my $set = $alphabet{$kind} // die "no kind $kind";
	my $limit = int(256 / @$set) * @$set;
	my $text = '';

	while (length $text < $length)
	{
		my $byte = $self->byte;
		$text .= $set->[ $byte % @$set ] if $byte < $limit;
	}
	return $text;
}

sub with_crc
{
	my ($self) = @_;
	my $body = $self->random('a', 30);
	my ($crc, $digits) = (crc32($body), '');

	for (1 .. 6)
	{
		$digits = $base62[ $crc % 62 ] . $digits;
		$crc = int($crc / 62);
	}
	return $body . $digits;
}

sub expand
{
	my ($self, $template) = @_;

	$template =~ s/\{([a-zA-Z]):(\d+)\}/$self->random($1, $2)/ge;
	$template =~
	  s/\{uuid\}/join '-', map { $self->random('x', $_) } 8, 4, 4, 4, 12/ge;
	$template =~ s/\{crc\}/$self->with_crc/ge;
	$template =~
	  s/\{basic\}/encode_base64('deploy:' . $self->random('a', 14), '')/ge;
	return $template;
}

# A file of the corpus: its text, and the lines on which there is a credential,
# which are those that begin with "+". The others begin with a blank.
sub file
{
	my ($path, $seed) = @_;
	my $self = ScanCorpus->new("$seed/" . ($path =~ s{.*/}{}r));
	my ($text, $number, %true) = ('', 0);

	open my $f, '<', $path or die "$path: $!";
	while (my $line = <$f>)
	{
		$number++;
		my ($mark, $rest) = $line =~ /^([+ ]?)(.*\n)/s;
		$true{$number} = 1 if $mark eq '+';
		$text .= $self->expand($rest);
	}
	close $f;
	return ($text, \%true);
}

# Files as tools write them, long and full of what looks random, in which there
# is no credential: name => text.
sub false_friends
{
	my ($seed) = @_;
	my $r = ScanCorpus->new($seed);
	my $many = sub {
		my ($n, $template) = @_;
		return join '', map { $r->expand($template) } 1 .. $n;
	};

	return (
		'friends/package-lock.json' => $many->(200, <<'EOT'),
    "node_modules/pkg-{l:6}": {
      "version": "{d:1}.{d:1}.{d:2}",
      "resolved": "https://packages.example.com/pkg/-/pkg-{d:1}.tgz",
      "integrity": "sha512-{b:86}=="
    },
EOT
		'friends/Cargo.lock' => $many->(200, <<'EOT'),
[[package]]
name = "crate-{l:6}"
checksum = "{x:64}"

EOT
		'friends/go.sum' =>
		  $many->(200, "github.com/x/{l:6} v1.{d:1}.0 h1:{b:43}=\n"),
		'friends/poetry.lock' => $many->(200,
			qq(    {file = "p-{d:2}.whl", hash = "sha256:{x:64}"},\n)),
		'friends/yarn.lock' => $many->(200,
			"  integrity sha512-{b:86}==\n  resolved \"https://x/y.tgz#{x:40}\"\n"),
		'friends/git-log.txt' => $many->(200, <<'EOT'),
commit {x:40}
Merge: {x:7} {x:7}
Author: A Person <a@b.net>

    Rotate the token of the password store (see {x:12})

EOT
		'friends/SHA256SUMS' => $many->(200, "{x:64}  file-{l:5}.tar.gz\n"),
		'friends/ids.csv' =>
		  $many->(300, "{uuid},{uuid},token_id,{x:32},{d:16}\n"),
		'friends/dump.sql' => $many->(200,
			"INSERT INTO session_log VALUES ('{uuid}', '{x:64}', '\\x{x:96}', 'md5{x:32}');\n"
		),
		'friends/images.html' => $many->(40,
			qq(<img src="data:image/png;base64,iVBORw0KGgo{b:3000}">\n)),
		'friends/forms.html' => $many->(200, <<'EOT'),
<input type="hidden" name="csrf_token" value="{x:64}">
<input type="hidden" name="authenticity_token" value="{b:86}==" />
<meta name="csrf-token" content="{b:86}==">
<script src="/a.js" integrity="sha384-{b:64}" nonce="{b:22}=="></script>
EOT
		'friends/bundle.js' => $many->(100,
			'!function(t,e){var n=t.token,r=e.secretKey;t.key="k{d:2}";return n&&r?{token:n,password:e.password}:null}(this,{id:"{x:20}",h:"{x:8}"});'
		),
		'friends/hosts.pub' => $many->(100,
			"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA{b:44} user\@host\n"
			  . "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB{b:340} user\@host\n"),
		'friends/chain.pem' => $many->(20,
			"-----BEGIN CERTIFICATE-----\n"
			  . ("{b:64}\n" x 12)
			  . "-----END CERTIFICATE-----\n"
			  . "-----BEGIN PUBLIC KEY-----\n{b:64}\n{b:64}\n-----END PUBLIC KEY-----\n"
		),
		'friends/images.txt' =>
		  $many->(200, "registry.corp/app\@sha256:{x:64}\n"),
		'friends/trace.log' => $many->(200,
			"2024-05-{d:2} 10:00:{d:2} INFO request_id={uuid} trace={x:32} span={x:16} etag=\"{x:32}\" next_page_token={w:44} user_id={d:9}\n"
		),
		'friends/blob.txt' => $many->(50, "{b:76}\n" x 40),
		'friends/noise.txt' => $many->(2000, "{w:90}\n"));
}

1;
