#!/bin/sh
# Completes a bundle: tests/cuda/bundle.sh FOLDER "FATBINS". FOLDER/bin has the programs; what they need comes beside them, and all of it
# packed in FOLDER.tar.gz. With BUNDLE_MODELS=0 the tiny models stay out, for a machine that has the source tree too (run.sh --models).
set -eu
bundle=$1 images=$2
here=${0%/*}
most_mib=36 # packed: it has to travel

if [ -z "$images" ]; then
    echo "gpu-bundle: no nvcc was found (or CUDA=0 was given): a bundle without kernels proves nothing" >&2
    exit 1
fi
rm -rf "$bundle/lib" "$bundle/glibc" "$bundle/bin-own-libc" "$bundle/models"
mkdir -p "$bundle/lib" "$bundle/glibc" "$bundle/bin-own-libc" "$bundle/models"

# The C library stays apart: the machine's own is used, and this one only where that is older (run.sh).
for program in "$bundle"/bin/*; do ldd "$program"; done | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p' |
    sort -u | while read -r library; do
    case ${library##*/} in
    libkernels.so) ;;
    ld-linux* | libc.so.* | libm.so.* | libpthread.so.* | libdl.so.*) cp -L "$library" "$bundle/glibc/" ;;
    libcuda.so.*) echo "gpu-bundle: a program is linked with the driver" >&2 && exit 1 ;;
    *) cp -L "$library" "$bundle/lib/" ;;
    esac
done

# The driver and what comes with it ask for the parts that the C library once had: older ones than the rest do not go with it.
libc=$(ldd "$bundle/bin/visit" | sed -n 's/.*=> \(\/[^ ]*libc\.so[^ ]*\) .*/\1/p')
for name in libdl.so.2 libpthread.so.0 librt.so.1; do
    if [ -e "${libc%/*}/$name" ]; then cp -L "${libc%/*}/$name" "$bundle/glibc/"; fi
done

loader=$(basename "$bundle"/glibc/ld-linux*)
for program in "$bundle"/bin/*; do
    name=${program##*/}
    printf '#!/bin/sh\nroot=${0%%/*}/..\nexec "$root/glibc/%s" --library-path "$root/glibc:$root/lib:$root/kernels:${LD_LIBRARY_PATH:-}" "$root/bin/%s" "$@"\n' \
        "$loader" "$name" >"$bundle/bin-own-libc/$name"
    chmod +x "$bundle/bin-own-libc/$name"
done

for set in "$here"/../golden/data/*/manifest.json; do
    [ "${BUNDLE_MODELS:-1}" != 0 ] || break
    folder=${set%/*}
    mkdir "$bundle/models/${folder##*/}"
    for file in "$folder"/*; do
        case ${file##*/} in
        long.* | *.hidden.f32 | *.greedy_logits.f32) ;;
        *) cp "$file" "$bundle/models/${folder##*/}/" ;;
        esac
    done
done
cp "$here/tiny-shape.json" "$bundle/models/"
cp "$here/run.sh" "$here/compare.py" "$here/steps-check.json" "$bundle/"

commit=$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git -C "$here" status --porcelain -uno 2>/dev/null)" ] || commit="$commit, changed"
sed "1s/{/{\"commit\": \"$commit\",/" "$here/steps.json" >"$bundle/steps.json"

tar -czf "$bundle.tar.gz.part" -C "$(dirname "$bundle")" "$(basename "$bundle")"
mv "$bundle.tar.gz.part" "$bundle.tar.gz"
mib=$(du -m --apparent-size "$bundle.tar.gz" | cut -f1)
echo "$bundle: $(du -sm "$bundle" | cut -f1) MiB, $bundle.tar.gz: $mib MiB; run.sh in it needs a driver and sh"
if [ "$mib" -ge $most_mib ]; then
    echo "gpu-bundle: more than $most_mib MiB, packed" >&2
    exit 1
fi
