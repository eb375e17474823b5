#!/usr/bin/env bash
# Makes a package for Debian and its children out of what is built: packaging/deb.sh BUILD VERSION
# It needs the libraries that the program was linked with here, so it suits the release it was made on, and newer ones.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 version=$2
architecture=$(dpkg --print-architecture)
root=$build/deb/root
rm -rf "$build/deb"
mkdir -p "$root/DEBIAN" "$build/deb/debian"
make -s BUILD="$build" DESTDIR="$root" PREFIX=/usr SYSCONFDIR=/etc install-files >&2 # what goes out is the package's name

echo "Source: moebius" >"$build/deb/debian/control" # dpkg-shlibdeps wants to stand beside one
libraries=$(cd "$build/deb" && dpkg-shlibdeps -O --ignore-missing-info root/usr/lib/moebius/moebius 2>shlibdeps.log |
    sed -n 's/^shlibs:Depends=//p') || { cat "$build/deb/shlibdeps.log" >&2; exit 1; }
cat >"$root/DEBIAN/control" <<CONTROL
Package: moebius
Version: $version
Architecture: $architecture
Maintainer: Moebius <moebius@localhost>
Section: science
Priority: optional
Depends: $libraries
Recommends: bash-completion
Suggests: openmpi-bin
Description: runs and serves DeepSeek's mixture-of-experts models
 DeepSeek-V2-Lite, Coder-V2-Lite, V2, V3 and R1 on the machine that people have:
 on the command line, or as a server for editors and programs.
CONTROL
(cd "$root" && find etc -type f -printf '/%p\n') >"$root/DEBIAN/conffiles"
find "$root" -type d -exec chmod 755 {} +
package=$build/moebius_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$package.partial" >/dev/null
mv "$package.partial" "$package"
echo "$package"
